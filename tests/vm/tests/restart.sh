#!/usr/bin/env bash
# the daemon is killed and started again under fio --verify: no error, no wrong block, short stalls
# takes: 90
# disk: 2G
# memory: 768
# limit: 600
. /tests/vm/lib.sh
pools_on /dev/vda
cluster_up 2
# restart SIGNAL…: ends the daemon of node 1 with each signal and starts it again at once.
restart() {
    local signal
    for signal in "$@"; do
        node_signal 1 "$signal"
        now_ms >>/tmp/starts
        node_start 1
        # What the next one interrupts must be under way again.
        until_true 20 moved || fail "no I/O within 20 s of a start"
    done
}
# Whether the prober's writes go on.
moved() {
    local before
    before=$(wc -l </tmp/probe)
    until_true 5 eval "[ \$(wc -l </tmp/probe) -gt $before ]"
}

# longest: milliseconds from a daemon's start to the next write that was done, the most of all.
longest() {
    awk 'NR == FNR { starts[NR] = $1; n = NR; next }
        { while (at < n && starts[at + 1] <= $1) {
              at++
              if ($1 - starts[at] > most) most = $1 - starts[at]
          } }
        END { print at == n ? most : "never" }' /tmp/starts /tmp/probe
}

one() {
    local door=$1 fio probe stall signals=() kills=20
    # The way through FUSE is for machines that have none of the others.
    if quick || [ "$door" = fuse ]; then kills=5; fi
    device_up v 128 "$door" 2
    : >/tmp/starts
    # The last block is the prober's: a write after the other, each told when it is done.
    lockstep-vm probe "$DEV" --block $((128 * 256 - 1)) >/tmp/probe &
    probe=$!
    fio --eta=never --name=v --filename="$DEV" --size=48M --rw=randwrite --bsrange=4k-32k --direct=1 \
        --ioengine=libaio --iodepth=8 --verify=crc32c --verify_backlog=512 --verify_fatal=1 \
        --time_based --runtime=3600 --randseed=3 --output=/tmp/fio --output-format=normal &
    fio=$!
    disown $fio $probe
    until_true 20 moved || die "no I/O begins"
    for ((i = 0; i < kills; i++)); do signals+=(KILL); done
    restart "${signals[@]}" TERM
    check "fio still runs, so it has met no error" process_alive $fio
    check "so does the prober" process_alive $probe
    kill -INT $fio
    check "fio ends" until_true 180 not process_alive $fio
    check "fio has verified and found nothing" grep -q 'err= 0' /tmp/fio
    kill $probe
    until_true 10 not process_alive $probe
    stall=$(longest)
    check "I/O went on soon after each start" in_time "$stall" 2000
    check "the whole device can be read" dd if="$DEV" of=/dev/null bs=1M status=none
    check "both copies are in sync" until_true 60 in_sync v 2
    device_down v
    check "the kernel saw no error" no_errors
    result "$door: $kills kills and an orderly restart, longest stall $stall ms after a start (goal 2000)"
}

tried=no
for door in $(doors); do
    # The keeper needs FUSE_NOTIFY_RESEND, from Linux 6.9.
    [ "$door" != fuse ] || [ "$(uname -r | sort -V - <(echo 6.9) | head -n 1)" = 6.9 ] || continue
    one "$door"
    tried=yes
done
[ $tried = yes ] || die "no door was tried"
finish
