#!/usr/bin/env bash
# power cuts under fsync, on ext4 and now and then on XFS: what was durable is there, all is clean
# host: power
# takes: 370
# memory: 512
# limit: 120
. /tests/vm/lib.sh
KEEP=yes
CLUSTER_NODES=2 CLUSTER_DIR=/pools CLUSTER_UUID=8f5c2a4e-6a3d-4c43-9d5c-7d0d1f3f8a11
# The same in each round, as the addresses of a machine are.
node_ip() { echo "127.0.1.$1"; }

for n in 1 2; do
    disk=/dev/vd$([ $n = 1 ] && echo a || echo b)
    mkdir -p "$(node_dir $n)"
    [ "$VM_ROUND" -gt 0 ] || mkfs.ext4 -q "$disk" || die "no file system for node $n"
    check "the disk of node $n is mounted" mount "$disk" "$(node_dir $n)"
    # What must not outlive the machine.
    mkdir -p "$(node_dir $n)/run" && mount -t tmpfs tmpfs "$(node_dir $n)/run"
done
for n in 2 1; do node_launch $n; done
for n in 2 1; do node_ready $n 60 || die "n$n is not ready"; done

# Volumes are named after their file systems. fs_of ROUND: the one that is written in this round.
fs_of() { if [ $(($1 % 5)) -eq 4 ]; then echo xfs; else echo ext4; fi; }
first_of() { if [ "$1" = xfs ]; then echo 4; else echo 0; fi; }

# mounted FS: as a pod would have it. After a crash the daemon replays what is in its journal.
mounted() {
    lockstep_on 1 attach "$1" --node n1 --wait 60 --device --fs "$1" --mount /mnt >/dev/null &&
        [ "$(findmnt -no FSTYPE /mnt)" = "$1" ]
}

# made FS: the volume, its file system and its directory.
made() {
    # Small, for after each cut all that may differ is copied: XFS has to be told that it may be so.
    local options=(-q)
    [ "$1" != xfs ] || options+=(--unsupported)
    device_up "$1" 96 auto 2
    "mkfs.$1" "${options[@]}" "$DEV" || die "no $1 on the volume"
    mount "$DEV" /mnt && mkdir /mnt/files && sync || die "no files on the volume"
}

# checked FS: all that must hold after a power cut; it is mounted then.
checked() {
    local fs=$1 ledgers=() n
    check "$fs is attached and mounted" mounted "$fs"
    DEV=$(node_dir 1)/dev/$fs
    for ((n = 0; n < VM_ROUND; n++)); do
        [ "$(fs_of $n)" != "$fs" ] || ledgers+=("/tests/vm/ledger-$n")
    done
    check "everything durable is there" lockstep-vm check /mnt/files "${ledgers[@]}"
    check "it is unmounted" umount /mnt
    check "it is clean" fsck_clean "$fs" "$DEV"
    check "it is mounted again" mount "$DEV" /mnt
    check "no error was seen" no_errors
}

# ended FS: it is given up, and its copies are alike.
ended() {
    check "it is unmounted" umount /mnt
    check "both copies get in sync" until_true 60 in_sync "$1" 2
    check "it is detached" lockstep_on 1 detach "$1"
    check "both copies are the same" cmp "$(replica_data "$1" 1)" "$(replica_data "$1" 2)"
}

if [ -n "${VM_LAST:-}" ]; then
    for fs in ext4 xfs; do checked "$fs" && ended "$fs"; done
    finish
fi
fs=$(fs_of "$VM_ROUND")
if [ "$VM_ROUND" -eq "$(first_of "$fs")" ]; then made "$fs"; else checked "$fs"; fi
[ $FAILURES -eq 0 ] || finish
lockstep-vm files /mnt/files --ledger /dev/virtio-ports/ledger --round "$VM_ROUND" --seed "$VM_SEED"
die "the writer has ended by itself"
