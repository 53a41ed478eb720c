#!/usr/bin/env bash
# May be skipped where nobody may mount, or before Linux 6.9.
# A daemon that is killed twenty times while somebody writes to its device through FUSE and loop, and
# checks what he reads: no error, no wrong block. The keeper of the device is killed too: another one
# is started, and the next daemon finds the device there.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need fio losetup
[ "$(id -u)" -eq 0 ] || skip "needs root, to make devices"
IFS=.- read -r major minor _ < <(uname -r)
[ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 9 ]; } ||
    skip "a device of the FUSE door outlives its daemon from Linux 6.9; this is $(uname -r)"

readonly KILLS=20
cluster_up 2
doors=$(lockstep --json node show n1) || die "node show fails"
grep -q '"kind":"fuse"[^}]*"usable":true' <<<"$doors" || skip "no FUSE door on this kernel: $doors"
check "a volume is made" lockstep volume create v --size 64MiB --repl 2
device=$(lockstep attach v --node n1 --door fuse) || die "no device"

# Somebody who writes everywhere and reads it all again, once and once more, until he is told to
# stop. Each round leaves its longest wait, in ns.
load() {
    local round=0
    until [ -e "$CLUSTER_DIR/enough" ]; do
        round=$((round + 1))
        fio --name=load --filename="$device" --size=12M --offset=$((round % 5 * 12))M --rw=randwrite \
            --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --verify_fatal=1 \
            --verify_state_save=0 --randseed=$round --output-format=json \
            --output="$CLUSTER_DIR/fio" || return 1
        sed -n '/"clat_ns"/,/"max"/s/.*"max" : \([0-9]*\).*/\1/p' "$CLUSTER_DIR/fio" >>"$CLUSTER_DIR/waits"
    done
}
load &
load=$!
rounds() { [ "$(wc -l <"$CLUSTER_DIR/waits")" -ge "$1" ]; }
until_true 20 rounds 1 || die "nothing is written"

wait_under_load() { sleep "$1"; }
requests() { awk '{ print $5 + $1 }' "/sys/block/$(basename "$(readlink -f "$device")")/stat"; }
goes_on() { [ "$(requests)" -gt $((seen + 20)) ]; }

# another_keeper PID: the device is kept by another keeper than this one.
another_keeper() {
    local other
    other=$(keepers | head -n 1)
    [ -n "$other" ] && [ "$other" != "$1" ] && ls -l "/proc/$other/fd" | grep -q '/dev/fuse'
}

begin=$SECONDS
for ((kill = 1; kill <= KILLS; kill++)); do
    if [ $kill -eq 7 ] || [ $kill -eq 14 ]; then
        keeper=$(keepers | head -n 1)
        kill -KILL "$keeper" || fail "there is no keeper"
        check "another keeper has the device" until_true 10 another_keeper "$keeper"
    fi
    node_kill 1
    node_start 1
    seen=$(requests)
    until_true 10 goes_on || { fail "nothing goes on after kill $kill"; break; }
    wait_under_load 0.2
done
took=$((SECONDS - begin))
touch "$CLUSTER_DIR/enough"
until_true 30 not process_alive $load || die "fio hangs: $(cat /proc/$load/stack)"
check "$KILLS deaths in $took s: no error, no wrong block" wait $load
longest=$(sort -n "$CLUSTER_DIR/waits" | tail -n 1)
pass "longest wait of a request: $((longest / 1000000)) ms, of $(wc -l <"$CLUSTER_DIR/waits") rounds"
check "detached" lockstep detach v
no_keeper() { [ -z "$(keepers)" ]; }
check "and no keeper is left" until_true 15 no_keeper
finish
