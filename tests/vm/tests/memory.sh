#!/usr/bin/env bash
# most of a small machine's memory is dirty pages of the device that its own daemon serves
# takes: 110
# disk: 3G
# memory: 640
# limit: 700
. /tests/vm/lib.sh
pools_on /dev/vda
cluster_up 2
# Write-back begins when most of it is dirty. Programs are on a disk and may be put out of memory,
# but whoever wants more dirty pages than are left beside them has the kernel kill somebody.
echo 75 >/proc/sys/vm/dirty_ratio
echo 65 >/proc/sys/vm/dirty_background_ratio
echo 60000 >/proc/sys/vm/dirty_expire_centisecs
total=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
free_mib=$(awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo)
size=$((free_mib * 9 / 10))
# What is read back: an emulated processor takes long for it.
checked=$((size / 4))
most=0
# The most that was dirty or on its way, in MiB.
watch_dirty() {
    local now
    while sleep 0.2; do
        now=$(awk '/^(Dirty|Writeback):/ { s += $2 } END { print int(s / 1024) }' /proc/meminfo)
        [ "$now" -le "$most" ] || { most=$now; echo "$most" >/tmp/most; }
    done
}
watch_dirty &
watcher=$!
ON_CLEANUP+=("kill $watcher")

# filled MIB ARGUMENT…: the file's first part, buffered, as fast as memory takes it.
filled() {
    local mib=$1
    shift
    timeout 150 fio --name=m --filename=/mnt/m --size="${mib}M" --bs=256k --ioengine=psync \
        --verify=crc32c --verify_fatal=1 --randseed=9 --output-format=terse "$@"
}

for door in $(doors); do
    device_up v $((size + 200)) "$door" 2
    check "a file system is made" mkfs.ext4 -q "$DEV"
    check "it is mounted" mount "$DEV" /mnt
    check "$size MiB are written, $free_mib MiB were free" \
        filled $size --rw=write --do_verify=0
    check "and durable" timeout 150 sync /mnt/m
    forget_pages
    check "and right" filled $checked --rw=read
    check "it is unmounted" umount /mnt
    device_down v
    check "the kernel saw no error" no_errors
    check "nobody was killed for memory" eval '! dmesg | grep -iE "out of memory|oom-kill"'
    check "nobody is stuck" not asleep_for_ever
done
result "of $total MiB, $free_mib free, up to $(cat /tmp/most) dirty; doors $(echo $(doors))"
finish
