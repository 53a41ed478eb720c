#!/usr/bin/env bash
# How much 1, 2, 4 and 8 volumes can do at once: 4 KiB random writes, 32 under way on each; three
# copies, in memory, all served by n1. Rounds go over the numbers in turn. Medians of all volumes
# together. Goal: it grows until the machine is full.
#
# ROUNDS (5), SECONDS_EACH (3), SIZE_MIB (64, of each volume), POOLS_IN (a directory for the copies).
rounds=${ROUNDS:-5} each=${SECONDS_EACH:-3} mib=${SIZE_MIB:-64}
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
readonly COUNTS="1 2 4 8"

pools_in_memory many
cluster_up 3
uris=()
for i in 1 2 3 4 5 6 7 8; do
    lockstep volume create "v$i" --size "${mib}MiB" --repl 3 >/dev/null || die "no volume"
    uri=$(lockstep attach "v$i" --node n1 2>/dev/null) || die "v$i was not attached"
    uris+=("$uri")
    all_in_sync() { in_sync "v$i" 3; }
    until_true 30 all_in_sync || die "the copies of v$i are not in sync"
    # Nothing is measured of making room in a file.
    job --ioengine=nbd --uri="$uri" --size="${mib}m" --rw=write --bs=1m --iodepth=4 >/dev/null || exit 1
done

load=(--size="${mib}m" --rw=randwrite --bs=4k --iodepth=32 --time_based --runtime="$each")
# at_once N: writes a second of so many volumes together.
at_once() {
    local i words=()
    for ((i = 1; i < $1; i++)); do
        words+=(--name="v$i" --ioengine=nbd --uri="${uris[i]}" --randrepeat=0 --norandommap "${load[@]}")
    done
    job --thread --ioengine=nbd --uri="${uris[0]}" "${load[@]}" "${words[@]}" | cut -d';' -f49 | sum
}
for ((round = 1; round <= rounds; round++)); do
    for n in $COUNTS; do at_once "$n" >>"$CLUSTER_DIR/result$n" || exit 1; done
done
echo "$(machine), $rounds rounds of $each s"
one=$(median <"$CLUSTER_DIR/result1") said=
for n in $COUNTS; do
    rate=$(median <"$CLUSTER_DIR/result$n")
    echo "$n volumes: $rate writes a second, $(ratio "$rate" "$one") of one volume's"
    said+="${said:+, }\"volumes_$n\": $(ratio "$rate" "$one")"
done
[ $JSON = no ] || ON_CLEANUP+=("echo '{\"ratios\": {$said}}'")
finish
