#!/usr/bin/env bash
# A volume with three copies is served by a node that holds none of them, and that node's daemon is
# killed under load. What the next primary copies before it opens, against what the copies' rings
# held: the writes that were not known to be on all of them.
#
# ROUNDS (5): how often.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

load() {
    fio --name=load --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-128k --thread \
        --blockalign=4k --iodepth=32 --size=256M --time_based --runtime=120 \
        --output="$CLUSTER_DIR/load.fio" >"$CLUSTER_DIR/load" 2>&1 &
    fio=$!
    disown $fio
    ON_CLEANUP+=("kill -KILL $fio 2>/dev/null")
}
writes_go_on() { [ "$(number acked_writes)" -gt 2000 ]; }

cluster_up 4
check "a volume is made" lockstep volume create v --size 256MiB --repl 3 --node n2 --node n3 --node n4
all_repaired=0 all_rings=0
for ((round = 1; round <= ${ROUNDS:-5}; round++)); do
    uri=$(lockstep attach v --node n1 --wait 30) || die "the volume was not attached on n1"
    load
    until_true 60 writes_go_on || die "the load does not begin"
    node_kill 1
    until_true 30 not process_alive $fio || fail "fio hangs though its server is dead"
    rings=$(numbers ring_bytes | sum)
    lockstep attach v --node n2 --wait 30 >"$CLUSTER_DIR/uri" || die "n2 did not take it over"
    repaired=$(number repair_bytes)
    echo "round $round: the rings held $((rings >> 10)) KiB, $((repaired >> 10)) KiB were repaired"
    [ "$rings" -gt 0 ] || fail "nothing was under way; the round proves nothing"
    all_repaired=$((all_repaired + repaired)) all_rings=$((all_rings + rings))
    check "round $round: no more than the rings was repaired" [ "$repaired" -le "$rings" ]
    node_start 1
    check "round $round: all copies are in sync" until_true 60 in_sync v 3
    check "round $round: the volume is detached" lockstep detach v
done
for i in 3 4; do
    check "the copies on n2 and n$i are identical" cmp "$(replica_data v 2)" "$(replica_data v $i)"
done
echo "$((all_repaired >> 10)) KiB repaired, $((all_rings >> 10)) KiB in the rings of all copies"
if [ $JSON = yes ]; then
    line="{\"bench\":\"repair\",\"failed\":$FAILURES,\"rounds\":${ROUNDS:-5},"
    line+="\"ring_bytes\":$all_rings,\"repair_bytes\":$all_repaired,"
    line+="\"ratio\":$(ratio "$all_repaired" "$all_rings")}"
    ON_CLEANUP+=("echo '$line'")
fi
finish
