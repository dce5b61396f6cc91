# shellcheck shell=sh
# The "installer" of tiny-install.iso, sourced by init: names each medium that carries answers,
# writes the packed disk image to the first disk and reboots into it.

volume_label() {
  label=$(blkid "$1" 2>/dev/null | sed -n 's/.* LABEL="\([^"]*\)".*/\1/p')
  # busybox reads no labels of ISO 9660: the volume identifier is at byte 32808.
  [ -z "$label" ] && [ "$(dd if="$1" bs=1 skip=32769 count=5 2>/dev/null)" = CD001 ] &&
    label=$(dd if="$1" bs=1 skip=32808 count=32 2>/dev/null | tr -d ' ')
  echo "$label"
}

look_at_medium() {
  mount -o ro "$1" /answers 2>/dev/null || return
  if [ -e /answers/tiny.raw.gz ]; then
    mount -o ro "$1" /installer
  else
    console "INFZ-ANSWER dev=$1 label=$(volume_label "$1")" \
      "files=$(cd /answers && find . -type f | sort | tr '\n' ',')"
  fi
  umount /answers
}

mkdir -p /installer /answers
for target in vda sda nvme0n1; do [ -b /dev/$target ] && break; done
for medium in /dev/sr* /dev/sd? /dev/fd0; do
  [ -b "$medium" ] && look_at_medium "$medium"
done
if [ -b "/dev/$target" ] && [ -e /installer/tiny.raw.gz ]; then
  console "INFZ-INSTALL to $target"
  zcat /installer/tiny.raw.gz | dd of="/dev/$target" bs=1M 2>/dev/null
  sync
  console "INFZ-INSTALLED rebooting"
  sleep 1
  reboot -f
fi
console "INFZ-INSTALL no target"
