#!/usr/bin/env bash
# a pool's disk fails under a mounted file system: the member goes, nobody else notices
# takes: 33
# modules: dm-mod dm-flakey
# disk: 2G 600M 600M
# memory: 768
# limit: 300
. /tests/vm/lib.sh
# There is no udev to make nodes.
export DM_DISABLE_UDEV=1
pools_on /dev/vda

# The pools of nodes 1 and 2 are on disks of their own, which can be made to fail.
disks=(none /dev/vdb /dev/vdc)
mapped() { echo "0 $(blockdev --getsz "$1") $2"; }
# fault N TARGET…: what happens to node N's disk from now on.
fault() {
    local n=$1 disk=${disks[$1]}
    shift
    dmsetup suspend --noflush --nolockfs "disk$n" &&
        mapped "$disk" "${*//DISK/$disk}" | dmsetup load "disk$n" &&
        dmsetup resume "disk$n"
}
disk_up() {
    local n=$1 disk=${disks[$1]} dir
    dir=$(node_pool "$n")
    mapped "$disk" "linear $disk 0" | dmsetup create "disk$n" &&
        mkfs.ext4 -q "/dev/mapper/disk$n" && mkdir -p "$dir" && mount "/dev/mapper/disk$n" "$dir"
}
# new_disk N: mends node N's disk and starts its daemon again.
new_disk() {
    node_kill "$1"
    fault "$1" linear DISK 0
    umount "$(node_pool "$1")"
    e2fsck -fy "/dev/mapper/disk$1" >/dev/null 2>&1
    check "the disk of node $1 can be mounted" mount "/dev/mapper/disk$1" "$(node_pool "$1")"
    node_start "$1"
}
CLUSTER_NODES=3 CLUSTER_DIR=$(mktemp -d /pools/bad.XXXXXX)
CLUSTER_UUID=$(</proc/sys/kernel/random/uuid)
for n in 1 2; do
    disk_up $n || die "no device mapper"
    ON_CLEANUP+=("umount -l $(node_pool $n)")
done
for n in 3 2 1; do node_launch $n; done
for n in 3 2 1; do node_ready $n || die "n$n is not ready"; done

door=$(doors | head -n 1)
device_up v 128 "$door" 3
mkfs.ext4 -q "$DEV" && mount "$DEV" /mnt || die "no file system on the volume"
mkdir /mnt/files
: >/tmp/ledger
lockstep-vm files /mnt/files --ledger /tmp/ledger --round 1 --seed 5 >/tmp/files.log &
writer=$!
disown $writer
written() { [ "$(grep -c done /tmp/ledger)" -gt "$1" ]; }

check "files are written" until_true 30 written 30
echo "-- writes of node 2's disk fail now and then, then the whole disk"
fault 2 flakey DISK 0 1 2 1 error_writes
check "the member on node 2 is let go" until_true 60 in_sync v 2
check "files are written on" until_true 30 written $(($(grep -c done /tmp/ledger) + 30))
fault 2 error
check "files are written on" until_true 30 written $(($(grep -c done /tmp/ledger) + 30))

echo "-- node 2 gets a new disk"
new_disk 2
check "its copy gets in sync" until_true 120 in_sync v 3

echo "-- the disk of the node that serves the volume fails"
fault 1 error
check "the member on node 1 is let go" until_true 60 in_sync v 2
check "files are written on" until_true 30 written $(($(grep -c done /tmp/ledger) + 30))
check "the writer has met no error" process_alive $writer
kill $writer
until_true 10 not process_alive $writer
check "nothing failed on the device" eval "! dmesg | grep -E \"$(basename "$(readlink -f "$DEV")").*error\""
forget_pages
check "all files are right" lockstep-vm check /mnt/files /tmp/ledger
check "it is unmounted" umount /mnt
check "the file system is clean" e2fsck -fn "$DEV"
check "it is detached" lockstep_on 1 detach v

echo "-- node 1 gets a new disk"
new_disk 1
device=$(lockstep_on 1 attach v --node n1 --device --door "$door" | grep '^/' | tail -n 1)
check "the volume is attached again" test -b "$device"
check "all copies get in sync" until_true 120 in_sync v 3
check "it is mounted again" mount "$DEV" /mnt
check "all files are right" lockstep-vm check /mnt/files /tmp/ledger
check "it is unmounted" umount /mnt
check "it is detached" lockstep_on 1 detach v
result "$(grep -c done /tmp/ledger) changes over 2 lost disks, door $door"
finish
