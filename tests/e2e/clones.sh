#!/usr/bin/env bash
# May be skipped where nobody may mount.
# Snapshots of mounted file systems, and what is made from them: it mounts beside its source on the
# same node, has what was durable, grows to the size it was made with, and can be read only.
. "$(dirname "${BASH_SOURCE[0]}")/own_mounts.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need mkfs.ext4
[ "$(id -u)" -eq 0 ] || skip "needs root, to mount"
pools_on_xfs 6G
cluster_up 3
lockstep --json node show n1 | grep -q '"usable":true' || skip "no door to a block device here"
unmount_all() {
    local dir
    while read -r dir; do umount -l "$dir"; done < <(findmnt -rno TARGET | grep "^$CLUSTER_DIR/m")
}
ON_CLEANUP=(unmount_all "${ON_CLEANUP[@]}")
mib_of() { df --output=size -B1M "$1" | tail -n 1 | tr -d ' '; }
sum_of() { sha256sum <"$1"; }

for fs in ext4 xfs; do
    echo "-- $fs"
    m=$CLUSTER_DIR/m-$fs
    lockstep volume create f --size 320MiB --repl 2 --node n1 --node n2 >/dev/null || die "no volume"
    lockstep attach f --node n1 --fs $fs --mount "$m" >/dev/null || die "not mounted"
    head -c 20000000 /dev/urandom >"$m/durable" && sync "$m/durable"
    sum=$(sum_of "$m/durable")
    # Of this nothing is promised but that the file system is whole.
    (while :; do head -c 100000 /dev/urandom >"$m/later" || exit; done) 2>/dev/null &
    load=$!
    check "a snapshot while it is written" lockstep snapshot create f s
    kill $load && wait $load 2>/dev/null
    rm -f "$m/durable"

    check "a larger volume from it" lockstep volume create c --from-snapshot s --size 480MiB \
        --repl 2
    check "mounts beside its source" lockstep attach c --node n1 --fs $fs --mount "$m-c"
    check "what was durable is there" test "$(sum_of "$m-c/durable")" = "$sum"
    if can_grow $fs; then
        check "it has its size" test "$(mib_of "$m-c")" -gt $(($(mib_of "$m") + 120))
        check "which can be used" dd if=/dev/zero of="$m-c/b" bs=1M count=340 conv=fsync status=none
    fi

    check "another one" lockstep volume create r --from-snapshot s --repl 2
    check "to be read only, though its journal is not empty" \
        lockstep attach r --node n1 --mount "$m-r" --mount-option ro
    check "has it too" test "$(sum_of "$m-r/durable")" = "$sum"
    check "and is not written" not touch "$m-r/x"

    if can_grow $fs; then
        # From an empty log, in which there is nothing but that it has grown twice.
        lockstep detach f >/dev/null && lockstep attach f --node n1 --fs $fs --mount "$m" >/dev/null
        for size in 344 368; do
            check "grows to $size MiB" lockstep volume resize f --size ${size}MiB
        done
        touch "$m/grown" && sync "$m/grown"
        check "a snapshot of what has just grown twice" lockstep snapshot create f s2
        check "a volume from it" lockstep volume create g --from-snapshot s2 --repl 2
        check "mounts" lockstep attach g --node n1 --mount "$m-g"
        check "and has it" test -e "$m-g/grown"
        check "g: detached" lockstep detach g
        check "g: deleted" lockstep volume delete g
        lockstep snapshot delete s2 >/dev/null
    fi

    for name in f c r; do
        check "$name: detached" lockstep detach $name
        check "$name: deleted" lockstep volume delete $name
    done
    check "the snapshot" lockstep snapshot delete s
done
finish
