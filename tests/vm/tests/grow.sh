#!/usr/bin/env bash
# ext4 and XFS grow on each door while they are written; snapshots of them are mounted beside them
# takes: 90
# disk: 6G
# memory: 768
# limit: 400
. /tests/vm/lib.sh
mkfs.xfs -q /dev/vda && mkdir -p /pools && mount /dev/vda /pools || die "no disk for pools"
export TMPDIR=/pools
cluster_up 2
mib_of() { stat -f -c '%b %S' "$1" | awk '{ print int($1 * $2 / 1048576) }'; }

# grow VOLUME DIR MIB: makes it larger; where the kernel's ublk can't do that it is mounted anew.
grow() {
    local told
    told=$(lockstep volume resize "$1" --size "$3MiB") || fail "not larger: $told"
    if grep -q '^but:' <<<"$told"; then
        check "a ublk device that stays as it is says so" grep -q ublk <<<"$told"
        until_true 90 not process_alive $load || fail "the writer does not end"
        check "unmounted" lockstep detach "$1"
        check "mounted again" lockstep_on 1 attach "$1" --node n1 --door "$door" --mount "$2"
    fi
}

one() {
    local door=$1 fs=$2 before sum load
    echo "-- $fs through $door"
    lockstep volume create v --size 320MiB --repl 2 >/dev/null || die "no volume"
    lockstep_on 1 attach v --node n1 --door "$door" --fs "$fs" --mount /mnt/v >/dev/null ||
        die "not mounted"
    head -c 5000000 /dev/urandom >/mnt/v/durable && sync /mnt/v/durable
    sum=$(sha256sum </mnt/v/durable)
    before=$(mib_of /mnt/v)
    (for ((i = 0; i < 40; i++)); do head -c 500000 /dev/urandom >/mnt/v/w && sync /mnt/v/w; done) &
    load=$!
    check "a snapshot" lockstep snapshot create v s
    grow v /mnt/v 480
    check "it has its new size" test "$(mib_of /mnt/v)" -ge $((before + 150))
    wait $load || fail "the writer met an error"
    check "what was there is there" test "$(sha256sum </mnt/v/durable)" = "$sum"

    check "a larger volume from the snapshot" lockstep volume create c --from-snapshot s \
        --size 400MiB --repl 2
    check "mounts beside its source, and grows" \
        lockstep_on 1 attach c --node n1 --door "$door" --fs "$fs" --mount /mnt/c
    check "it has its size" test "$(mib_of /mnt/c)" -ge $((before + 70))
    check "and what was durable" test "$(sha256sum </mnt/c/durable)" = "$sum"
    for name in v c; do
        DEV=$(show $name | grep -o '"path":"[^"]*"' | head -n 1 | cut -d '"' -f 4)
        device_down $name
    done
    check "the snapshot is deleted" lockstep snapshot delete s
    check "the kernel saw no error" no_errors
}

# How many requests to $DEV, or to devices of its number before, have been answered.
answered() { awk '{ print $1 + $5 }' "/sys/block/${DEV##*/}/stat"; }
has_answered() { [ "$(answered)" -ge "$1" ]; }

# often DOOR: a device that is used has each size as soon as its server says so.
often() {
    local door=$1 mib=16 most=32 load told=resized before
    SIZE=$((mib << 20)) serve "$door"
    before=$(answered)
    fio --name=w --filename="$DEV" --size=8M --rw=randrw --bs=4k --direct=1 --ioengine=libaio \
        --iodepth=16 --time_based --runtime=600 >/tmp/load &
    load=$!
    disown $load
    # A fio that is told to end before it has begun prints nothing, or does not end.
    until_true 60 has_answered $((before + 100)) || fail "$door: the load does not begin"
    while [ "$told" = resized ] && [ $mib -lt $most ]; do
        mib=$((mib + 1))
        order "resize $((mib << 20))" || told=nothing
        told=$(tail -n 1 /tmp/answers)
        [ "$(blockdev --getsize64 "$DEV")" -eq $((mib << 20)) ] || told="a small device: $told"
    done
    check "$door: it grows as often as it is told while it is used" test "$told" = resized
    result "$door: $mib MiB, $told"
    kill -INT $load
    until_true 60 not process_alive $load || fail "$door: the load does not end"
    check "$door: the load met no error" grep -q 'err= 0' /tmp/load
    check "$door: it is closed" kill -TERM $SERVER
    until_true 60 not process_alive $SERVER || fail "$door: its server does not end"
}

list=$(doors)
[ -n "$list" ] || die "this kernel has no door"
for door in $list; do
    for fs in ext4 xfs; do one "$door" "$fs"; done
done
# The kernel's ublk cannot do it before Linux 6.16.
for door in ${list/ublk/}; do often "$door"; done
result "doors $(echo $list)"
finish
