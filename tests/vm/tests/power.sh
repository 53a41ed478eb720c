#!/usr/bin/env bash
# power cuts under ext4 and fsync: everything that was durable is there, and the file system is clean
# host: power
# memory: 640
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

if [ "$VM_ROUND" -eq 0 ]; then
    device_up v 256 auto 2
    mkfs.ext4 -q "$DEV" || die "no file system on the volume"
    mount "$DEV" /mnt || die "it is not mounted"
    mkdir /mnt/files && sync
else
    DEV=$(lockstep_on 1 attach v --node n1 --wait 60 --device | grep '^/' | tail -n 1)
    [ -b "$DEV" ] || die "no device after the power cut"
    # Its journal is replayed, as any mount after a crash does.
    check "it is mounted" mount "$DEV" /mnt
    ledgers=()
    for ((n = 0; n < VM_ROUND; n++)); do ledgers+=("/tests/vm/ledger-$n"); done
    check "everything durable is there" lockstep-vm check /mnt/files "${ledgers[@]}"
    check "it is unmounted" umount /mnt
    check "it is clean" e2fsck -fn "$DEV"
    check "it is mounted again" mount "$DEV" /mnt
    check "no error was seen" no_errors
fi
if [ -n "${VM_LAST:-}" ]; then
    check "it is unmounted" umount /mnt
    check "both copies get in sync" until_true 60 in_sync v 2
    check "it is detached" lockstep_on 1 detach v
    check "both copies are the same" cmp "$(replica_data v 1)" "$(replica_data v 2)"
    finish
fi
[ $FAILURES -eq 0 ] || finish
lockstep-vm files /mnt/files --ledger /dev/virtio-ports/ledger --round "$VM_ROUND" --seed "$VM_SEED"
die "the writer has ended by itself"
