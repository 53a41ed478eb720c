#!/usr/bin/env bash
# Snapshots of a volume of 10 GiB with three copies on one XFS, one after the other, under random
# writes all over it; every other one is deleted again. For how long writes waited for each, and,
# beside every tenth, how long the file system takes for FICLONE alone of a data file like that: the
# one of the snapshot, since a copy whose own file were shared whole would do nothing else
# meanwhile, and be let go after 3 s.
#
# ROUNDS (30): how many. SPREAD (1G): so much is written at random before, which breaks up the files.
# RATE (unlimited): writes a second. DEPTH (16): writes under way.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need xfs_io cp
ROUNDS=${ROUNDS:-30}

pools_on_xfs 60G
# To give back at once what snapshots took would be another load.
mount -o remount,nodiscard "$POOLS/xfs" || die "cannot remount"

write_at_random() {
    fio --name=load --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --thread --size=10G \
        --iodepth="${DEPTH:-16}" --randseed="$RANDOM" "$@"
}
writes_go_on() { [ "$(number acked_writes)" -gt "$begun" ]; }
# noted NAME: the microseconds that a daemon has noted so of the last snapshot.
noted() {
    sed 's/\x1b\[[0-9;]*m//g' "$CLUSTER_DIR"/n*/log | grep "\bsnapshot=\"*s$round\b" |
        grep -o "\b$1=[0-9]*" | tail -n 1 | grep -o '[0-9]*$'
}
uid_taken() { sed -n 's/.*"uid": *"\([^"]*\)".*/\1/p' "$CLUSTER_DIR/taken" | head -n 1; }
# bare UID: notes the microseconds of FICLONE of the data of the first copy of this snapshot, and of
# starting the program for it.
bare() {
    local begin=${EPOCHREALTIME/./} took
    cp --reflink=always "$(node_pool 1)/snapshots/$1/data" "$POOLS/xfs/bare" || die "not cloned"
    took=$((${EPOCHREALTIME/./} - begin))
    rm -f "$POOLS/xfs/bare"
    echo "$took" >>"$CLUSTER_DIR/bare"
    echo "FICLONE alone took $took us"
}
# at PERCENT: that percentile of the numbers on standard input, one on each line.
at() {
    sort -n | awk -v p="$1" '{ v[NR] = $1 } END { i = int((NR * p + 99) / 100); print v[i < 1 ? 1 : i] }'
}

cluster_up 3
check "a volume is made" lockstep volume create v --size 10GiB --repl 3
uri=$(lockstep attach v --node n1) || die "the volume was not attached"
write_at_random --io_size="${SPREAD:-1G}" >"$CLUSTER_DIR/spread" 2>&1 || die "not written"
begun=$(number acked_writes)
write_at_random --time_based --runtime=7200 ${RATE:+--rate_iops=$RATE} --output-format=json \
    --output="$CLUSTER_DIR/load.json" >"$CLUSTER_DIR/load" 2>&1 &
fio=$!
disown $fio
ON_CLEANUP+=("kill -KILL $fio 2>/dev/null")
until_true 60 writes_go_on || die "the load does not begin"
load_from=$(number acked_writes) load_since=$EPOCHREALTIME
for ((round = 1; round <= ROUNDS; round++)); do
    # What a slow disk did to a copy is no matter of snapshots, but is told.
    healthy v || { echo "round $round waits for a copy"; until_true 300 healthy v || die "none came"; }
    if lockstep --json snapshot create v "s$round" >"$CLUSTER_DIR/taken" 2>"$CLUSTER_DIR/said"; then
        pause=$(grep -o '"pause_us": *[0-9]*' "$CLUSTER_DIR/taken" | grep -o '[0-9]*$')
        echo "$pause" >>"$CLUSTER_DIR/pauses"
        drain=$(noted drain_us) || die "no daemon has noted how long writes under way took"
        echo "$drain" >>"$CLUSTER_DIR/drains"
        echo $((pause - drain)) >>"$CLUSTER_DIR/keeps"
        echo "round $round: writes waited $pause us, $drain of them for writes under way"
        # Making and removing it keeps the disk busy for seconds.
        ((round % 10 == 1)) && bare "$(uid_taken)"
    else
        fail "round $round: $(cat "$CLUSTER_DIR/said")"
    fi
    ((round % 2)) || lockstep snapshot delete "s$((round - 1))" >/dev/null || fail "not deleted"
done
load=$(awk -v n=$(($(number acked_writes) - load_from)) -v a="$load_since" -v b="$EPOCHREALTIME" \
    'BEGIN { printf "%d", n / (b - a) }')
kill -INT $fio
until_true 30 not process_alive $fio || fail "the load does not end"
extents=$(xfs_io -r -c stat "$(replica_data v 1)" | sed -n 's/^fsxattr.nextents = //p')
echo "$load writes/s, $extents extents"
json=
for what in pauses drains keeps bare; do
    row=
    for p in 50 90 99 100; do row+=" $(at $p <"$CLUSTER_DIR/$what")"; done
    read -r p50 p90 p99 max <<<"$row"
    json+=",\"${what}_us\":{\"p50\":$p50,\"p90\":$p90,\"p99\":$p99,\"max\":$max}"
    case $what in
        pauses) name="writes waited" ;;
        drains) name="for writes under way" ;;
        keeps) name="for the copies to be kept" ;;
        bare) name="FICLONE alone" ;;
    esac
    printf '%-26s p50 %s us, p90 %s, p99 %s, max %s\n' "$name" "$p50" "$p90" "$p99" "$max"
done
if [ $JSON = yes ]; then
    line="{\"bench\":\"snapshot\",\"failed\":$FAILURES,\"rounds\":$ROUNDS,\"writes_per_s\":$load,"
    line+="\"extents\":$extents$json}"
    ON_CLEANUP+=("echo '$line'")
fi
finish
