#!/bin/sh
# udhcpc's events; only a new lease matters.
# shellcheck disable=SC2154 # udhcpc sets ip, mask, interface and router
[ "$1" = bound ] || exit 0
ip addr add "$ip/${mask:-24}" dev "$interface"
[ -n "$router" ] && ip route replace default via "$router"
echo "INFZ-DHCP $interface $ip" >/dev/console
