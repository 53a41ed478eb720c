#!/usr/bin/env bash
# May be skipped where nobody may mount.
# The making of a file system is cut short: the daemon is killed in the midst of it, alone or with the
# program that makes it, or the program fails. The same call again ends with a sound file system, and
# what somebody else has written to the device is not taken for something half made.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need mkfs.ext4 mkfs.xfs e2fsck xfs_repair mountpoint findmnt blkdiscard
[ "$(id -u)" -eq 0 ] || skip "needs root, to make devices and to mount"

# Programs that make file systems, as the daemons find them. With a file `stand` they write something
# and wait until it is gone; with a file `fail` they write something and fail.
tools=$(mktemp -d) || exit 1
ON_CLEANUP+=('rm -rf "$tools"')
for fs in ext4 xfs; do
    cat >"$tools/mkfs.$fs" <<END
#!/usr/bin/env bash
device=\${!#}
spoil() { head -c 65536 /dev/urandom | dd of="\$device" bs=65536 seek=8 conv=notrunc,fsync status=none; }
if [ -e "$tools/fail" ]; then spoil; echo "no luck" >&2; exit 1; fi
if [ -e "$tools/stand" ]; then
    spoil
    echo \$\$ >"$tools/stands"
    while [ -e "$tools/stand" ]; do sleep 0.05; done
    rm "$tools/stands"
fi
exec $(command -v mkfs.$fs) "\$@"
END
    chmod +x "$tools/mkfs.$fs"
done
export PATH=$tools:$PATH

cluster_up 2
doors=$(lockstep --json node show n1) || die "node show fails"
grep -q '"usable":true' <<<"$doors" || skip "no door to a block device on this kernel: $doors"
grep -q '"restartable":true' <<<"$doors" ||
    skip "no block device outlives its daemon on this kernel: $doors"
mnt=$CLUSTER_DIR/m
unmount_all() {
    local dir
    while read -r dir; do umount -l "$dir"; done < <(findmnt -rno TARGET | grep "^$CLUSTER_DIR/m")
}
ON_CLEANUP+=(unmount_all)

# Programs may be slow where much else is going on.
attach() { lockstep attach v --node n1 --fs $fs --mount "$mnt" --wait 60; }
detached() { says "not attached" lockstep volume show v; }
works() {
    mountpoint -q "$mnt" && [ "$(findmnt -no FSTYPE "$mnt")" = $fs ] &&
        head -c 3000000 /dev/urandom >"$mnt/file" && sync "$mnt/file"
}
# The mounter of node 1's daemon: its parent has gone with the daemon, its input it has read.
mounters() {
    local dir
    for dir in /proc/[0-9]*; do
        { tr '\0' ' ' <"$dir/cmdline" | grep -q "^lockstepd mounter" &&
            [ "$(readlink "$dir/exe")" = "$(readlink -f "$BIN_DIR/lockstepd")" ] &&
            tr '\0' '\n' <"$dir/environ" | grep -qF "$tools:"; } 2>/dev/null && echo "${dir#/proc/}"
    done
}
# Begins to attach, and kills the daemon while the file system is being made.
begin_and_kill() {
    touch "$tools/stand"
    attach >/dev/null 2>&1 &
    local caller=$!
    until_true 20 test -s "$tools/stands" || die "nobody makes a file system"
    node_kill 1
    wait $caller && fail "who asked was told that all is well"
}

for fs in ext4 xfs; do
    check "a volume is made" lockstep volume create v --size 400MiB --repl 1 --node n1

    echo "-- $fs: the program fails"
    touch "$tools/fail"
    check_refused 4 "no luck" attach
    check "nothing is attached" detached
    rm "$tools/fail"
    check "the next time it is made" attach
    check "and works" works
    check "detached" lockstep detach v
    check "deleted" lockstep volume delete v

    echo "-- $fs: the daemon is killed, and so is the program"
    check "a volume is made" lockstep volume create v --size 400MiB --repl 1 --node n1
    begin_and_kill
    for pid in $(mounters) $(cat "$tools/stands"); do kill -KILL "$pid"; done
    rm -f "$tools/stand" "$tools/stands"
    node_start 1
    check_refused 4 "cut short" lockstep attach v --node n1 --mount "$mnt"
    check "the same call makes it anew" attach
    check "and it works" works
    check "detached" lockstep detach v
    check "deleted" lockstep volume delete v

    echo "-- $fs: the daemon is killed, and the program goes on"
    check "a volume is made" lockstep volume create v --size 400MiB --repl 1 --node n1
    begin_and_kill
    node_start 1
    attach >"$CLUSTER_DIR/again" 2>&1 &
    again=$!
    waits_for_it() { [ "$(mounters | wc -l)" -ge 2 ] && grep -q -- '-> FLOCK' /proc/locks; }
    until_true 10 waits_for_it || fail "nobody waits for the one who makes it"
    check "nothing is made beside it" process_alive $again
    rm "$tools/stand"
    until_true 30 not process_alive $again || fail "who wants it waits for ever"
    check "what was finished is taken: $(cat "$CLUSTER_DIR/again")" wait $again
    check "and works" works
    check "detached" lockstep detach v
    check "deleted" lockstep volume delete v

    echo "-- $fs: somebody else has had the device meanwhile"
    check "a volume is made" lockstep volume create v --size 400MiB --repl 1 --node n1
    begin_and_kill
    for pid in $(mounters) $(cat "$tools/stands"); do kill -KILL "$pid"; done
    rm -f "$tools/stand" "$tools/stands"
    node_start 1
    device=$(lockstep attach v --node n1 --device) || fail "no device"
    echo "mine" | dd of="$device" bs=4096 conv=sync,notrunc,fsync status=none
    check_refused 4 "not blank" attach
    check "what he wrote is there" eval '[ "$(head -c 4 "$device")" = mine ]'
    check "he makes it blank" blkdiscard -z "$device"
    check "and gets his file system" attach
    check "which works" works
    check "detached" lockstep detach v
    check "deleted" lockstep volume delete v
done
finish
