# shellcheck shell=sh
# The disk with an ext4 labelled infz-data, sourced by init: it is mounted on /data and written to for as
# long as the guest runs, so that any image of it tells what the guest had written by then:
#
#   files/N   1024 lines "N BOOT", for the last hundred numbers; BOOT is the same until the guest is restarted
#   counter   the last N whose file was written whole; replaced by a rename
#
# What is on the disk for certain is told in /run/written, which is in memory.

find_data_disk() {
  for disk in /dev/vd[b-z]; do
    # The label is 120 bytes into the superblock, which is at 1024.
    [ -b "$disk" ] && [ "$(dd if="$disk" bs=1 skip=1144 count=9 2>/dev/null)" = infz-data ] && echo "$disk"
  done
}

write_number() {
  lines="$1 $boot
"
  for _ in 1 2 3 4 5 6 7 8 9 10; do lines=$lines$lines; done
  printf %s "$lines" >"/data/files/$1"
  echo "$1" >/data/counter.new
  mv /data/counter.new /data/counter
  rm -f "/data/files/$(($1 - 100))"
  sync
  echo "$1" >/run/written.new
  mv /run/written.new /run/written
}

write_all_the_time() {
  boot=$(cut -c1-8 /proc/sys/kernel/random/boot_id)
  mkdir -p /data/files
  number=$(cat /data/counter 2>/dev/null || echo 0)
  while :; do
    number=$((number + 1))
    write_number "$number"
    usleep 20000
  done
}

data_disk=$(find_data_disk)
if [ -n "$data_disk" ]; then
  mkdir -p /data
  # The kernel finds no checksum of its own accord: it would ask /sbin/modprobe.
  modprobe -a crc32c_generic ext4
  if mount -t ext4 -o noatime "$data_disk" /data; then
    console "INFZ-DATA $data_disk"
    write_all_the_time &
  fi
fi
