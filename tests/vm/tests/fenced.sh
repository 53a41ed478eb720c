#!/usr/bin/env bash
# a volume is taken over elsewhere: who is on the old mount gets EIO at once, nothing is left behind
# takes: 60
# disk: 2G
# memory: 768
# limit: 300
. /tests/vm/lib.sh
pools_on /dev/vda
cluster_up 3

# writer: writes and flushes until an error; then its time and the error are in /tmp/writer.
writer() {
    local error
    : >/tmp/writing
    while error=$(dd if=/dev/zero of=/mnt/x bs=64k count=1 conv=fsync 2>&1); do
        echo >>/tmp/writing
    done
    echo "$(now_ms) $error" >/tmp/writer
}
writes() { [ "$(wc -l </tmp/writing)" -gt 5 ]; }

# old_mount_ends SINCE_MS: what must hold once the volume is elsewhere.
old_mount_ends() {
    local since=$1 after
    check "the writer ends" until_true 30 test -s /tmp/writer
    after=$(($(head -n 1 /tmp/writer | cut -d' ' -f1) - since))
    check "it has met an error" grep -qiE 'input/output|read-only' /tmp/writer
    check "within a second" in_time $after 1000
    check "the old mount is unmounted" umount /mnt
    check "nobody is stuck" not asleep_for_ever
    check "the old device is gone" until_true 10 device_gone "$(cat /tmp/real)"
    check "its name too" test ! -e "$DEV"
    waited="$waited, $after ms"
}

mounted() {
    device_up "$1" 320 "$2" 3
    readlink -f "$DEV" >/tmp/real
    rm -f /tmp/writer
    mkfs.$3 -q "$DEV" && mount "$DEV" /mnt || die "no file system"
    writer &
    until_true 30 writes || die "nothing is written"
}

waited=
for door in $(doors); do
    for fs in ext4 xfs; do
        waited="$waited $door $fs"
        echo "-- $door, $fs: taken over while its daemon is well"
        mounted v "$door" $fs
        check "it is taken over" lockstep attach v --node n2 --force
        old_mount_ends "$(now_ms)"
        check "it is detached" lockstep detach v --force
        lockstep volume delete v >/dev/null

        echo "-- $door, $fs: taken over while its daemon is dead, and requests wait"
        mounted v "$door" $fs
        node_kill 1
        check "it is taken over" lockstep attach v --node n2 --wait 30
        check "the writer waits" test ! -s /tmp/writer
        begin=$(now_ms)
        node_start 1
        old_mount_ends "$begin"
        check "it is detached" lockstep detach v --force
        lockstep volume delete v >/dev/null
    done
done
result "to the error:$waited"
finish
