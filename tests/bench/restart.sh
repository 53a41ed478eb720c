#!/usr/bin/env bash
# How long a device stands still when its daemon is killed with -9 and started again at once, under
# random writes, and what that time is made of. Two copies on two daemons of this machine; the one
# that is killed has the device. Times are medians over the rounds, in milliseconds from the new
# daemon's start; the last is the longest too.
#
#   cargo build --release --bins -p lockstep-replicator -p lockstep-vm
#   tests/bench/restart.sh                                    # here, as root
#   tests/vm/boot --kernel 6.1 --disk 2G --limit 600 --env DOOR=nbd tests/bench/restart.sh
#
# DOOR (fuse), ROUNDS (10), SIZE_MIB (48: what is written, and so what differs at most),
# LOCKSTEP_BIN_DIR (where the programs are).
if [ -f /tests/vm/lib.sh ]; then
    . /tests/vm/lib.sh
    pools_on /dev/vda
else
    . "$(dirname "${BASH_SOURCE[0]}")/../e2e/lib.sh"
fi
readonly door=${DOOR:-fuse} rounds=${ROUNDS:-10} mib=${SIZE_MIB:-48}
PATH=$PATH:$BIN_DIR
[ "$(id -u)" -eq 0 ] || skip "needs root"
need fio lockstep-vm

probe='' writer=''
# The device is let go of before the daemons end.
idle() {
    local pid
    for pid in $probe $writer; do
        kill -INT "$pid" 2>/dev/null
        until_true 30 not process_alive "$pid"
    done
    lockstep_on 1 detach v --force >/dev/null
}
ON_CLEANUP=(idle)

# moment TEXT: when the first line of the new log with TEXT was written, after the start.
moment() {
    tail -n "+$lines" "$(node_log 1)" | grep -F -m 1 "$1" | awk -v start="$start" '{
        split(substr($1, 12, 15), t, ":")
        now = (t[1] * 60 + t[2]) * 60 + t[3]
        split(start, t, ":")
        printf "%d", (now - (t[1] * 60 + t[2]) * 60 - t[3] + 86400) % 86400 * 1000 }'
}
# median COLUMN
median() { sort -n -k "$1,$1" "$times" | awk -v c="$1" '{ v[NR] = $c } END { print v[int((NR + 1) / 2)] }'; }
wrote() { [ "$(wc -l <"$told")" -gt "$before" ]; }

cluster_up 2
told=$CLUSTER_DIR/told times=$CLUSTER_DIR/times
lockstep volume create v --size 128MiB --repl 2 >/dev/null || die "no volume"
device=$(lockstep_on 1 attach v --node n1 --device --door "$door" 2>/dev/null | grep '^/' | tail -n 1)
[ -b "$device" ] || die "no device through $door"
# The last block is the prober's: a write after the other, each told when it is done.
lockstep-vm probe "$device" --block $((128 * 256 - 1)) >"$told" &
probe=$!
fio --eta=never --name=w --filename="$device" --size="${mib}M" --rw=randwrite --bsrange=4k-32k \
    --direct=1 --ioengine=libaio --iodepth=8 --time_based --runtime=3600 --output="$CLUSTER_DIR/fio" &
writer=$!
disown $probe $writer
for ((round = 0; round < rounds; round++)); do
    before=$(($(wc -l <"$told") + 500))
    until_true 60 wrote || die "nothing is written"
    node_kill 1
    before=$(wc -l <"$told") lines=$(($(wc -l <"$(node_log 1)") + 1))
    begin=${EPOCHREALTIME/[.,]/}
    start=$(TZ=UTC printf '%(%H:%M:%S)T' $((begin / 1000000))).${begin: -6}
    node_start 1
    until_true 60 wrote || die "nothing is written after a restart"
    write=$(awk -v begin=$((begin / 1000)) '$1 > begin { print $1 - begin; exit }' "$told")
    echo "$(moment 'engine started') $(moment 'ready node') $(moment 'Recovering')" \
        "$(moment 'Active') $(moment 'its device goes on') $write" >>"$times"
done
echo "door $door, $rounds kills under random writes on $mib MiB; load $(cut -d' ' -f1 /proc/loadavg)"
column=0
for name in "pools opened" "in the cluster" "claimed" "copies compared" "device taken over" "first write"; do
    column=$((column + 1))
    printf '%-18s %6s ms\n' "$name" "$(median $column)"
done
printf '%-18s %6s ms\n' "longest" "$(sort -n -k 6,6 "$times" | tail -n 1 | cut -d' ' -f6)"
finish
