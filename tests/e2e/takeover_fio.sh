#!/usr/bin/env bash
# fio writes at random and verifies what it wrote, before and after the daemon that serves the volume
# is killed in mid-write; what it wrote and flushed before must also verify afterwards.
#
# FIO_SECONDS: how long the timed runs take together (30).
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need fio cmp
fio --enghelp 2>/dev/null | grep -qw nbd || skip "this fio has no engine nbd"

seconds=${FIO_SECONDS:-30}
half=$(((seconds + 1) / 2))

# run NAME URI OPTION…: random writes of 4 KiB to 128 KiB, 32 at a time, each with a checksum.
run() {
    local name=$1 uri=$2
    shift 2
    fio --name="$name" --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-128k \
        --blockalign=4k --iodepth=32 --verify=crc32c --verify_fatal=1 --randseed=7 \
        --verify_state_save=0 --aux-path="$CLUSTER_DIR" --output="$CLUSTER_DIR/$name.fio" "$@"
}

# The region that is written once, and another for the timed runs.
once=(--offset=0 --size=64M)
timed=(--offset=64M --size=64M --time_based --runtime="$half")

cluster_up 3
check "a volume is made" lockstep volume create v --size 192MiB --repl 3
uri=$(lockstep attach v --node n1) || die "the volume was not attached on n1"

check "fio verifies what it wrote on n1" run first "$uri" "${once[@]}" --end_fsync=1
check "fio runs clean on n1 for $half s" run timed-1 "$uri" "${timed[@]}"

echo "-- kill -9 in mid-write"
run victim "$uri" --offset=128M --size=64M --time_based --runtime=60 --verify=0 \
    >"$CLUSTER_DIR/victim" 2>&1 &
victim=$!
disown $victim
writes_go_on() { [ "$(acked_writes v)" -gt "$before" ]; }
before=$(acked_writes v)
check "writes are under way" until_true 20 writes_go_on
node_kill 1
check "fio ends when its server is gone" until_true 30 not process_alive $victim

echo "-- taken over by n2"
uri=$(lockstep attach v --node n2 --wait 30) || die "n2 did not take the volume over"
check "what was written on n1 verifies on n2" run again "$uri" "${once[@]}" --verify_only
check "fio runs clean on n2 for $half s" run timed-2 "$uri" "${timed[@]}"

echo "-- n1 returns"
node_start 1
check "all three copies get in sync" until_true 60 in_sync v 3
check "it still verifies" run last "$uri" "${once[@]}" --verify_only
check "the volume is detached" lockstep detach v
for i in 2 3; do
    check "the copies on n1 and n$i are identical" \
        cmp "$(replica_data v 1)" "$(replica_data v $i)"
done
finish
