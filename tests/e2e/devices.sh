#!/usr/bin/env bash
# May be skipped where nobody may mount.
# A volume as people use it: a block device with a file system, mounted. It is refused to be taken
# away while it is in use, goes on over deaths and stops of its daemon without an error, and fails
# at once when another node takes the volume over. Nothing is left of it then.
. "$(dirname "${BASH_SOURCE[0]}")/own_mounts.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need fio mkfs.ext4 mkfs.xfs mountpoint findmnt
[ "$(id -u)" -eq 0 ] || skip "needs root, to make devices and to mount"

cluster_up 3
doors=$(lockstep --json node show n1) || die "node show fails"
grep -q '"usable":true' <<<"$doors" || skip "no door to a block device on this kernel: $doors"
check "node show tells each door, and which is chosen" says "chosen" lockstep node show n1

# What is mounted below the test's directory is unmounted, whatever happens.
unmount_all() {
    local dir
    while read -r dir; do umount -l "$dir"; done < <(findmnt -rno TARGET | grep "^$CLUSTER_DIR/m")
}
ON_CLEANUP+=(unmount_all)
mnt=$CLUSTER_DIR/m
dev() { echo "$CLUSTER_DIR/n$1/dev/v"; }

# Files of many sizes with their checksums, all durable.
write_files() {
    local n
    for ((n = 0; n < 40; n++)); do
        head -c $((n * n * 997)) /dev/urandom >"$mnt/f$n" && sync "$mnt/f$n" || return 1
    done
    (cd "$mnt" && sha256sum f* >"$CLUSTER_DIR/sums") && cp "$CLUSTER_DIR/sums" "$mnt/" && sync -f "$mnt"
}
files_are_right() { (cd "$mnt" && sha256sum --quiet -c "$CLUSTER_DIR/sums"); }

# nothing_left I: node I has no device, no mount and nothing noted.
nothing_left() {
    local run=$CLUSTER_DIR/n$1/run
    ! findmnt -rno TARGET | grep -q "^$run" && ! losetup -a | grep -q "$run" &&
        [ -z "$(ls "$run/devices" 2>/dev/null)" ] && [ ! -e "$(dev "$1")" ] && [ ! -L "$(dev "$1")" ]
}

works_there() { [ "$(readlink /proc/$sleeper/cwd)" = "$mnt" ]; }
wait_under_load() { sleep "$1"; }

for fs in ext4 xfs; do
    echo "-- $fs"
    check "a volume is made" lockstep volume create v --size 400MiB --repl 2 --node n1 --node n2
    check_refused 4 "no file system to mount" lockstep attach v --node n1 --mount "$mnt"
    check_refused 4 "not empty" lockstep attach v --node n1 --fs $fs --mount "$CLUSTER_DIR"
    check "who gets no mount has nothing attached" says "not attached" lockstep volume show v
    check "attached with $fs" lockstep attach v --node n1 --fs $fs --mount "$mnt"
    check "once more is the same" says "$(dev 1)" lockstep attach v --node n1 --fs $fs --mount "$mnt"
    check "it is mounted" mountpoint -q "$mnt"
    check "its name leads to a block device" test -b "$(dev 1)"
    check "it is $fs" test "$(findmnt -no FSTYPE "$mnt")" = $fs
    check "volume show tells of it" says "$(dev 1)" lockstep volume show v
    check "files are written" write_files
    (cd "$mnt" && exec sleep 600) &
    sleeper=$!
    disown $sleeper
    until_true 5 works_there || fail "nobody works in $mnt"
    check_refused 4 "process $sleeper" lockstep detach v
    check "the mount goes on" files_are_right
    kill $sleeper
    until_true 5 not process_alive $sleeper
    check "detached" lockstep detach v
    check "nothing is left, nor the directory" eval 'nothing_left 1 && [ ! -e "$mnt" ]'

    echo "-- $fs: other content is never overwritten; mounts by hand are seen"
    other=$([ $fs = xfs ] && echo ext4 || echo xfs)
    check_refused 4 "not blank" lockstep attach v --node n2 --fs $other --mount "$mnt"
    check "whatever is there is mounted, read-only" \
        lockstep attach v --node n2 --ro --mount "$mnt" --mount-option noatime
    check "with the options" says noatime findmnt -no OPTIONS "$mnt"
    check "the files are right" files_are_right
    check "nothing can be written" not touch "$mnt/new"
    check "detached" lockstep detach v
    device=$(lockstep attach v --node n1 --device) || die "no device"
    mkdir "$mnt" "$mnt-2"
    check "mounted by hand" mount "$device" "$mnt"
    check_refused 4 "$mnt" lockstep detach v
    check "the mount goes on" files_are_right
    check "unmounted by hand" umount "$mnt"
    check "a mount in the state of the daemon" lockstep attach v --node n1 --mount "$mnt"
    check "and one more by hand" mount "$device" "$mnt-2"
    check_refused 4 "$mnt-2" lockstep detach v
    check "the first is still there" mountpoint -q "$mnt"
    exec 9>"$mnt/open"
    check "by force" lockstep detach v --force
    check "what was open fails" not eval 'echo x >&9 && sync "$mnt-2"'
    exec 9>&-
    umount -l "$mnt-2"
    check "nothing is left" until_true 10 nothing_left 1
    rmdir "$mnt" "$mnt-2"

    echo "-- $fs: the daemon dies and comes back under load"
    check "attached" lockstep attach v --node n1 --fs $fs --mount "$mnt"
    fio --name=load --directory="$mnt" --size=48M --rw=randwrite --bs=4k --ioengine=libaio \
        --iodepth=8 --direct=1 --verify=crc32c --verify_backlog=500 --verify_fatal=1 --verify_state_save=0 \
        --time_based --runtime=12 --output="$CLUSTER_DIR/fio" &
    load=$!
    until_true 10 test -e "$mnt/load.0.0" || fail "fio does not begin"
    for signal in KILL TERM KILL; do
        wait_under_load 1.5
        node_signal 1 $signal
        node_start 1
    done
    until_true 60 not process_alive $load || die "fio hangs: $(cat /proc/$load/stack)"
    check "no error, no byte wrong: $(grep -m 1 'write:' "$CLUSTER_DIR/fio")" wait $load
    check "the files are right" files_are_right
    rm -f "$mnt/load.0.0"

    echo "-- $fs: taken over by n2"
    sh -c "while echo line && sync '$mnt/line'; do :; done >'$mnt/line'" 2>/dev/null &
    writer=$!
    disown $writer
    until_true 5 test -s "$mnt/line" || fail "nobody writes"
    mkdir "$mnt-new"
    # Both nodes are on one kernel here, which takes no XFS that it has already.
    option=$([ $fs = xfs ] && echo nouuid || echo noatime)
    check "n2 has it" \
        lockstep attach v --node n2 --force --mount "$mnt-new" --mount-option "$option"
    # At once, also where every request of the old primary is under way: it is not for its sessions
    # with the other copies to die first, which takes 3 s.
    begin=$(date +%s%N)
    if until_true 2 not process_alive $writer; then
        pass "who wrote on n1 has an error, $((($(date +%s%N) - begin) / 1000000)) ms after that"
    else
        fail "who wrote on n1 hangs: $(cat /proc/$writer/stack 2>/dev/null)"
        kill -KILL $writer
    fi
    check "its mount is gone" until_true 5 not mountpoint -q "$mnt"
    check "nothing is left on n1" until_true 10 nothing_left 1
    mnt=$CLUSTER_DIR/m-new
    check "the files are right on n2" files_are_right
    check "detached" lockstep detach v
    check "nothing is left on n2" until_true 10 nothing_left 2
    mnt=$CLUSTER_DIR/m
    rmdir "$mnt-new" "$mnt" 2>/dev/null
    check "the volume is deleted" lockstep volume delete v
done
finish
