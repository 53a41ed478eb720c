#!/usr/bin/env bash
# a volume that is slow or stands still: no error while it does, EIO at once when its device fails
# takes: 37
# modules: nbd
# memory: 512
# limit: 240
. /tests/vm/lib.sh
slow_ms=3000

gone() { kill "-$1" $SERVER && until_true 20 not process_alive $SERVER; }

# verified SECONDS: random writes for that long, each read again and compared.
verified() {
    fio --name=v --filename="$DEV" --size=32M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \
        --iodepth=16 --verify=crc32c --verify_backlog=128 --verify_fatal=1 --time_based \
        --runtime="$1" --randseed=5 --output-format=terse
}

# written: how much has been, by the kernel's count.
written() { awk '{ print $7 }' "/sys/block/${DEV#/dev/}/stat"; }
moved() {
    local before
    before=$(written)
    until_true 10 eval "[ \$(written) -gt $before ]"
}

# wait_still SECONDS: a volume stands still for longer than the kernel's timers run.
wait_still() { sleep "$1"; }

# writes NAME: one after the other, until one fails; the time of that goes to /tmp/ended-NAME.
writes() {
    while dd if=/dev/zero of="/mnt/$1" bs=64k count=2 conv=fsync status=none 2>/dev/null; do :; done
    now_ms >"/tmp/ended-$1"
}
ended() { [ -s /tmp/ended-1 ] && [ -s /tmp/ended-2 ]; }

pauses() {
    local door=$1 fio status
    serve "$door" --delay-us $((slow_ms * 1000))
    check "$door: requests that take $slow_ms ms each are done" timeout 60 fio --name=s \
        --filename="$DEV" --size=128k --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \
        --iodepth=16 --output-format=terse
    order counts
    check "$door: none was done twice" grep -q '"writes":32,' /tmp/answers
    check "$door: it is closed" gone TERM

    serve "$door"
    verified 20 >/tmp/fio &
    fio=$!
    check "$door: writes go on" moved
    order hold
    wait_still 4
    order go
    check "$door: they go on after a standstill" moved
    check "$door: released for the next server" gone USR1
    serve "$door" --resume /tmp/token
    check "$door: they go on after a release" moved
    order hold
    wait_still 1
    check "$door: killed while it stands still" gone KILL
    serve "$door" --resume /tmp/token
    check "$door: they go on after that" moved
    wait $fio
    status=$?
    check "$door: all of it was a pause, and every block is right" test $status -eq 0
    check "$door: it is closed" gone TERM
    check "$door: the kernel saw no error" no_errors
}

failure() {
    local door=$1 begin took
    serve "$door"
    mkfs.ext4 -q "$DEV" && mount "$DEV" /mnt || die "no file system"
    rm -f /tmp/ended-*
    writes 1 &
    writes 2 &
    check "$door: files are written" moved
    order hold
    wait_still 2
    check "$door: who writes them waits" not ended
    begin=$(now_ms)
    order fail
    check "$door: they have their errors" until_true 10 ended
    took=$(($(cat /tmp/ended-[12] | sort -n | tail -n 1) - begin))
    check "$door: within a second" [ $took -le 1000 ]
    check "$door: it is unmounted" umount /mnt
    check "$door: nothing waits for ever" not asleep_for_ever
    check "$door: its server ends" gone KILL
    result "$door: error $took ms after the failure"
}

doors='nbd'
for door in $doors; do
    pauses "$door"
    failure "$door"
done
finish
