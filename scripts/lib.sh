# shellcheck shell=bash
# What the scripts share: where the project is, how they speak, how they give up.
# To be sourced, after `set -euo pipefail`.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # read by the scripts that source this file
guest_dir=${INFINIZATION_GUEST_DIR:-$project/.guest}

# say WORDS... - one line about what happens now.
say() { printf '▸ %s\n' "$*" >&2; }

# fail SENTENCE - the one thing that is missing and the command that mends it; ends the script.
fail() {
  printf '✗ %s\n' "$*" >&2
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# version_at_least HAVE WANT - compares dotted versions.
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# need_private_namespaces - what `private` cannot do without, before anything is built for minutes.
need_private_namespaces() {
  [ "$(id -u)" = 0 ] || fail "Namespaces, TAPs and nftables need root: run the same command with sudo."
  [ -c /dev/net/tun ] || fail "The kernel offers no TAP devices (/dev/net/tun): run \`modprobe tun\` as root."
  unshare --net --mount --pid --fork true 2>/dev/null ||
    fail "No namespaces can be made here: run it on the host itself, or in a container started with --privileged."
}

# traces - what we may leave outside of private namespaces.
traces() {
  find /sys/fs/cgroup -type d -path '*infinization*' 2>/dev/null || true
  ls -d /etc/infinization /var/lib/infinization 2>/dev/null || true
}

# only_one FILE - waits until no other run of ours holds FILE; released when the script ends.
only_one() {
  exec 9<"$1"
  flock --nonblock 9 && return
  say "another run is busy with $1, waiting for it"
  flock 9
}
