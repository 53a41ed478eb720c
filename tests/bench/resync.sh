#!/usr/bin/env bash
# A volume of 4 GiB with three copies; one node is down while scattered blocks are written; it
# returns. What goes over the network until all copies are in sync, against what the node missed.
#
# AWAY (no): whether the volume is served on a node without a copy. What was missed then crosses the
# network once, from copy to copy; through the node that serves it, it would cross it twice.
# QUIET (yes): whether the node goes down when what was there before is settled on all copies.
# MISSED_MIB (200): how much is written meanwhile. BASE_MIB (256): how much was there before.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
readonly LIMIT=1.1

write() {
    local name=$1 mib=$2
    shift 2
    fio --name="$name" --ioengine=nbd --uri="$uri" --rw=randwrite --bsrange=4k-64k \
        --blockalign=4k --iodepth=16 --size=4G --io_size="${mib}M" --refill_buffers --end_fsync=1 \
        --randseed="$RANDOM" --output="$CLUSTER_DIR/$name.fio" "$@"
}

nodes=3 serves=3 back=1 others=(2 3)
[ "${AWAY:-no}" = no ] || nodes=4
cluster_up "$nodes"
check "a volume is made" lockstep volume create v --size 4GiB --repl 3
holders=()
for ((i = 1; i <= nodes; i++)); do
    if [ -e "$(replica_data v "$i")" ]; then holders+=("$i"); elif [ "$nodes" = 4 ]; then serves=$i; fi
done
if [ "$nodes" = 4 ]; then back=${holders[0]} others=("${holders[@]:1}"); fi
uri=$(lockstep attach v --node "n$serves") || die "the volume was not attached on n$serves"
check "${BASE_MIB:-256} MiB are there before" write base "${BASE_MIB:-256}"
# Regions that were written just before the kill would be compared too, by their digests.
is_quiet() { [ "$(numbers activity_log_regions | sum)" -eq 0 ]; }
if [ "${QUIET:-yes}" = yes ]; then
    check "the activity logs are empty" until_true 60 is_quiet
fi
echo "regions in the activity logs of the copies: $(numbers activity_log_regions | paste -sd' ')"
node_kill "$back"
two_left() { in_sync v 2; }
check "the copy on n$back is left out" until_true 60 two_left
check "${MISSED_MIB:-200} MiB are written meanwhile" write missed "${MISSED_MIB:-200}" \
    --write_lat_log="$CLUSTER_DIR/missed" --log_offset=1
# Each block that was written counts once.
missed=$(awk -F', *' '{ for (b = $5 / 4096; b < ($5 + $4) / 4096; b++) seen[b] }
    END { n = 0; for (b in seen) n++; print n * 4096 }' "$CLUSTER_DIR"/missed_lat*.log)

before=$(wire) begin=$(date +%s%N)
node_start "$back"
check "all copies get in sync" until_true 300 in_sync v 3
ms=$((($(date +%s%N) - begin) / 1000000))
sent=$(($(wire) - before)) moved=$(number resync_bytes) direct=$(number direct_bytes)
wire_ratio=$(ratio "$sent" "$missed") moved_ratio=$(ratio "$moved" "$missed")
echo "missed $((missed >> 10)) KiB; moved $((moved >> 10)) KiB ($moved_ratio);" \
    "on the wire $((sent >> 10)) KiB with all headers and heartbeats ($wire_ratio); $ms ms"
check "no more than $LIMIT times what was missed was moved" \
    awk -v r="$moved_ratio" -v l=$LIMIT 'BEGIN { exit !(r > 0 && r <= l) }'
check "no more than $LIMIT times what was missed was on the wire" \
    awk -v r="$wire_ratio" -v l=$LIMIT 'BEGIN { exit !(r > 0 && r <= l) }'
if [ "$nodes" = 4 ]; then
    check "all of it went from copy to copy" [ "$direct" -eq "$moved" ]
fi
check "the volume is detached" lockstep detach v
for i in "${others[@]}"; do
    check "the copies on n$back and n$i are identical" \
        cmp "$(replica_data v "$back")" "$(replica_data v "$i")"
done
if [ $JSON = yes ]; then
    # Said last, after what `finish` says.
    line="{\"bench\":\"resync\",\"failed\":$FAILURES,\"missed_bytes\":$missed,"
    line+="\"moved_bytes\":$moved,\"direct_bytes\":$direct,\"wire_bytes\":$sent,\"moved_ratio\":$moved_ratio,"
    line+="\"wire_ratio\":$wire_ratio,\"ms\":$ms}"
    ON_CLEANUP+=("echo '$line'")
fi
finish
