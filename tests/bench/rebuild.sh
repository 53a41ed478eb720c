#!/usr/bin/env bash
# How long writes take while a copy is built: a volume with two copies on three nodes gets a third,
# while a client writes 4 KiB at random, one at a time, RATE a second; against the same without. In
# memory. Goal: p99 at most twice what it is without.
#
# ROUNDS (3), SECONDS_EACH (5, of the writes without), MIB (1024, of the volume), RATE (1000),
# POOLS_IN (a directory for the copies).
rounds=${ROUNDS:-3} each=${SECONDS_EACH:-5} mib=${MIB:-1024} rate=${RATE:-1000}
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

pools_in_memory rebuild
cluster_up 3 --forget-after-ms 500
lockstep volume create v --size "${mib}MiB" --repl 2 --node n1 --node n2 >/dev/null || die "no volume"
uri=$(lockstep attach v --node n1 2>/dev/null) || die "the volume was not attached"
two() { copies v 2 && in_sync v 2; }
three() { in_sync v 3; }
until_true 30 two || die "the copies are not in sync"
job --ioengine=nbd --uri="$uri" --size="${mib}m" --rw=write --bs=1m --iodepth=4 --refill_buffers >/dev/null || exit 1

# The words of fio.
writes=(--name=writes --ioengine=nbd --uri="$uri" --size="${mib}m" --rw=randwrite --bs=4k --iodepth=1
    --rate_iops="$rate" --randrepeat=0 --norandommap --lat_percentiles=1 --clat_percentiles=0
    --minimal --time_based)
# p99 FILE: of what fio said there, in microseconds.
p99() { awk -F';' '/^3;/ { sub(/.*=/, "", $71); print $71; ok = $48 > 0 } END { exit !ok }' "$1"; }

for ((round = 1; round <= rounds; round++)); do
    fio "${writes[@]}" --runtime="$each" >"$CLUSTER_DIR/fio" 2>&1
    p99 "$CLUSTER_DIR/fio" >>"$CLUSTER_DIR/without" || die "fio: $(cat "$CLUSTER_DIR/fio")"
    begin=$(date +%s%N)
    lockstep volume set v --repl 3 >/dev/null || die "no third copy is wanted"
    fio "${writes[@]}" --runtime=600 >"$CLUSTER_DIR/fio" 2>&1 &
    writer=$!
    until_true 600 three || die "the third copy was not built"
    ms=$((($(date +%s%N) - begin) / 1000000))
    # It tells of what it did until then.
    kill -TERM $writer
    wait $writer
    p99 "$CLUSTER_DIR/fio" >>"$CLUSTER_DIR/with" || die "fio: $(cat "$CLUSTER_DIR/fio")"
    echo $((mib * 1000 / ms)) >>"$CLUSTER_DIR/speed"
    lockstep volume set v --repl 2 >/dev/null || die "two copies are not wanted again"
    until_true 60 two || die "the third copy did not leave"
done
without=$(median <"$CLUSTER_DIR/without") with=$(median <"$CLUSTER_DIR/with") word=missed
slower=$(ratio "$with" "$without")
awk -v r="$slower" 'BEGIN { exit !(r <= 2) }' && word=met
echo "$(machine), $rounds rounds, $rate writes a second"
echo "p99 of writes: $without us without, $with us while $mib MiB were built: $slower; goal <= 2: $word"
echo "built at $(median <"$CLUSTER_DIR/speed") MiB/s"
[ $JSON = no ] || ON_CLEANUP+=("echo '{\"ratios\": {\"rebuild_p99\": $slower}}'")
finish
