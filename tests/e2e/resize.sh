#!/usr/bin/env bash
# May be skipped where nobody may mount.
# A volume that becomes larger while it is written: its copies, its device and its file system with
# it. One that is away gets its size when it is back; one whose pool has no room is named.
. "$(dirname "${BASH_SOURCE[0]}")/own_mounts.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy nbdinfo cmp

cluster_up 4
size_is() { show "$1" | grep -q "\"size_bytes\":$2,"; }
nbd_size_is() { [ "$(nbdinfo --size "$1")" -eq "$2" ]; }

echo "-- attached, and not attached"
lockstep volume create v --size 16MiB --repl 3 --node n1 --node n2 --node n3 >/dev/null || die "no volume"
check "not attached: larger" lockstep volume resize v --size 24MiB
check "the volume says so" size_is v $((24 << 20))
check "it is not attached afterwards" says "not attached" lockstep volume show v
fill v n1 20
check_refused 4 "does not shrink" lockstep volume resize v --size 16MiB
check "attached: larger, asked of another node" lockstep_on 2 volume resize v --size 64MiB
check "once more is the same" lockstep volume resize v --size 64MiB
check "who connects from now on sees it" nbd_size_is "$uri" $((64 << 20))
check "what was there is there" same_data "$uri"
fill v n1 60
check "what is new can be written" same_data "$uri"

echo "-- a copy that is away"
node_kill 3
until_true 20 in_sync v 2 || die "n3 is not removed"
check "larger without it" lockstep volume resize v --size 96MiB
fill v n1 90
node_start 3
check "it comes back as long as the others" until_true 60 in_sync v 3
node_kill 1
uri=$(lockstep attach v --node n3) || die "not attached at n3"
check "and has all" same_data "$uri"
node_start 1
lockstep detach v >/dev/null || die "not detached"

echo "-- no room"
node_stop 4
node_start 4 --pool "small=$CLUSTER_DIR/small,capacity=64MiB"
lockstep volume create s --size 16MiB --repl 1 --node n4 --pool small >/dev/null || die "no volume"
lockstep attach s --node n4 >/dev/null || die "not attached"
check_refused 4 "pool small of node n4 has no room" lockstep volume resize s --size 1GiB
check "nothing has changed" size_is s $((16 << 20))
check "what fits is done" lockstep volume resize s --size 32MiB
lockstep detach s >/dev/null

[ "$(id -u)" -eq 0 ] || { echo "no devices: needs root"; finish; }
lockstep --json node show n1 | grep -q '"usable":true' || { echo "no devices here"; finish; }
unmount_all() {
    local dir
    while read -r dir; do umount -l "$dir"; done < <(findmnt -rno TARGET | grep "^$CLUSTER_DIR/m")
}
ON_CLEANUP+=(unmount_all)
mnt=$CLUSTER_DIR/m
blocks_of() { df --output=size -B1M "$mnt" | tail -n 1 | tr -d ' '; }
for fs in ext4 xfs; do
    command -v "mkfs.$fs" >/dev/null || continue
    echo "-- with $fs on its device"
    lockstep volume create f --size 400MiB --repl 2 --node n1 --node n2 >/dev/null || die "no volume"
    lockstep attach f --node n1 --fs $fs --mount "$mnt" >/dev/null || die "not mounted"
    head -c 50000000 /dev/urandom >"$mnt/a" && sync "$mnt/a"
    sum=$(sha256sum <"$mnt/a")
    before=$(blocks_of)
    told=$(lockstep volume resize f --size 800MiB) || fail "not larger: $told"
    if grep -q '^but:' <<<"$told"; then
        # A ublk device of an older kernel, or nobody may let a mounted ext4 grow here.
        pass "it says what does not show it: $(tail -n 1 <<<"$told")"
        check "detached for that" lockstep detach f
        check "mounted again" lockstep attach f --node n1 --fs $fs --mount "$mnt"
    fi
    if can_grow $fs; then
        check "the file system has the new room" test "$(blocks_of)" -gt $((before + 300))
        check "which can be used" dd if=/dev/zero of="$mnt/b" bs=1M count=500 conv=fsync status=none
    fi
    check "what was there is there" test "$(sha256sum <"$mnt/a")" = "$sum"
    check "detached" lockstep detach f
    check "deleted" lockstep volume delete f
done
finish
