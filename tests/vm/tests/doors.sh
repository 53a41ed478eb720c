#!/usr/bin/env bash
# ext4 and XFS on each door: random file operations against a model, fio's own verification, fsck
# takes: 90
# disk: 3G
# memory: 768
# limit: 400
. /tests/vm/lib.sh
pools_on /dev/vda
cluster_up 2
operations=400 fio_mib=8 seeds=0
if quick; then operations=200; fi

# exercise: three files at a time, each with another seed, and other ones each time.
exercise() {
    local pids=() seed status=0
    for seed in $((seeds + 1)) $((seeds + 2)) $((seeds + 3)); do
        lockstep-vm exercise "/mnt/file-$seed" --seed "$seed" --operations $operations &
        pids+=($!)
    done
    for seed in "${pids[@]}"; do wait "$seed" || status=1; done
    return $status
}

# verified DIRECT ENGINE: random writes, each read again and compared.
verified() {
    fio --name=v --filename=/mnt/fio --size="${fio_mib}M" --rw=randwrite --bsrange=4k-64k \
        --direct="$1" --ioengine="$2" --iodepth=8 --fsync=64 --verify=crc32c --do_verify=1 \
        --verify_fatal=1 --randseed=7 --output-format=terse
}

one() {
    local door=$1 fs=$2
    device_up v 320 "$door" 2
    echo "-- $fs through $door: $(lsblk -no NAME,SIZE,LOG-SEC,PHY-SEC,MIN-IO,DISC-MAX "$DEV")"
    check "sectors have 4096 bytes" test "$(blockdev --getss "$DEV")" -eq 4096
    check "$fs is made" "mkfs.$fs" -q "$DEV"
    check "$fs is mounted" mount "$DEV" /mnt
    check "a mounted device is not given up" not lockstep_on 1 detach v
    check "random operations agree with the model" exercise
    seeds=$((seeds + 3))
    check "direct I/O is verified" verified 1 libaio
    check "buffered I/O is verified" verified 0 psync
    sha256sum /mnt/file-* >/tmp/sums
    check "space can be given back" fstrim /mnt
    check "it is unmounted" umount /mnt
    check "$fs is clean" fsck_clean "$fs" "$DEV"
    check "it is mounted again" mount "$DEV" /mnt
    check "all files are as before" sha256sum -c /tmp/sums
    check "it is unmounted again" umount /mnt
    device_down v
    check "the kernel saw no error" no_errors
}

list=$(doors)
[ -n "$list" ] || die "this kernel has no door"
for door in $list; do
    for fs in ext4 xfs; do one "$door" "$fs"; done
done
result "doors $(echo $list)"
finish
