#!/usr/bin/env bash
# May be skipped where nobody may mount.
# Nodes with copies of snapshots are lost for good, and the copies are made anew: beside the volume's
# new copy, sharing blocks with it; and when the volume is deleted. What is made of them in the end
# has every byte though no node that took them is left.
. "$(dirname "${BASH_SOURCE[0]}")/own_mounts.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp
[ "$(id -u)" -eq 0 ] || skip "needs root, to mount a file system for the pools"
pools_on_xfs 4G
# The last node owns the record store.
cluster_up 5 --rebuild-after-ms 1500 --forget-after-ms 500

used_mib() { sync -f "$POOLS/xfs" && df --output=used -B1M "$POOLS/xfs" | tail -n 1 | tr -d ' '; }
snapshot() { lockstep --json snapshot show "$1"; }
# has SNAPSHOT N: so many copies are there, and none is missing or being made.
has() {
    local all
    all=$(snapshot "$1" | grep -o '"state":"[a-z]*"')
    [ "$(grep -c present <<<"$all")" -eq "$2" ] && [ "$(wc -l <<<"$all")" -eq "$2" ]
}
holds_snapshot() { snapshot "$1" | grep -q "\"node\":\"$2\",\"remake\":[^}]*\"state\":\"present\""; }
# moved SNAPSHOT I: MiB that node I moved to make its copy.
moved() {
    local bytes
    bytes=$(sed -n "s/.*a copy was made anew.*snapshot=\"*$1\"* .*moved_bytes=\([0-9]*\).*/\1/p" "$(node_log "$2")")
    echo $((bytes >> 20))
}
snapshot_data() { echo "$(node_pool "$2")/snapshots/$(snapshot "$1" | sed -n 's/.*"uid":"\([^"]*\)".*/\1/p')/data"; }
lose() { node_kill "$1" && rm -rf "$(node_pool "$1")"; }
patch() { # patch MIB: the volume begins with so much else.
    head -c $(($1 << 20)) /dev/urandom >"$CLUSTER_DIR/patch"
    dd if="$CLUSTER_DIR/patch" of="$input" conv=notrunc bs=1M status=none
    nbdcopy --flush "$CLUSTER_DIR/patch" "$uri" || die "not written"
}

lockstep volume create v --size 64MiB --node n1 --node n2 --node n3 >/dev/null || die "no volume"
fill v n2 40
check "a snapshot" lockstep snapshot create v s1
cp "$input" "$CLUSTER_DIR/first"
patch 8
check "another one" lockstep snapshot create v s2
cp "$input" "$CLUSTER_DIR/second"
patch 4
check "it has its copies" has s1 3

echo "-- a node is lost, the volume is attached"
before=$(used_mib)
lose 1
check "the volume gets another copy" until_true 30 in_sync v 3
check "and s1" until_true 30 has s1 3
check "and s2" until_true 30 has s2 3
new=4
holds_snapshot s1 n4 || new=5
check "both beside the volume's" holds_snapshot s2 n$new
check "which is there too" holds v n$new
check "what s1 shares was not moved ($(moved s1 $new) MiB were)" test "$(moved s1 $new)" -eq 8
check "nor what s2 shares ($(moved s2 $new) MiB were)" test "$(moved s2 $new)" -eq 4
after=$(used_mib)
check "nor stored twice ($before MiB before, $after after)" test "$after" -lt $((before + 16))
check "it is told" says "3 of 3 copies" lockstep snapshot show s1
check_status 3 "one that is not there" lockstep snapshot show nothing

echo "-- another one, the volume is deleted; one copy has a bad block"
lockstep detach v >/dev/null && lockstep volume delete v >/dev/null || die "v is not deleted"
dd if=/dev/urandom of="$(snapshot_data s1 $new)" bs=4096 seek=2000 count=1 conv=notrunc status=none
check "a node is forgotten" lockstep node remove n1
lose 2
check "s1 has three copies again" until_true 30 has s1 3
check "s2 as well" until_true 30 has s2 3
last=$((9 - new))
check "on the node that is left" holds_snapshot s1 n$last
check "s2 shares with s1 ($(moved s2 $last) MiB were moved)" test "$(moved s2 $last)" -eq 8
check "no block is lost" says '"lost_blocks":0' snapshot s1

echo "-- none of the nodes that took them is left"
lose 3
for s in s1 s2; do
    check "a volume from $s" \
        lockstep volume create "c-$s" --from-snapshot $s --repl 1 --node n$last
    want=$CLUSTER_DIR/first
    [ $s = s1 ] || want=$CLUSTER_DIR/second
    u=$(lockstep attach "c-$s" --node n$last) || die "c-$s is not attached"
    check "every byte is there" same_data "$u" "$want"
    check "and checksums match" lockstep volume scrub "c-$s" --wait
    lockstep detach "c-$s" >/dev/null
done
check "s1 is deleted" lockstep snapshot delete s1
check "s2 too" lockstep snapshot delete s2
nothing_left() { [ -z "$(ls -A "$(node_pool 4)/snapshots" "$(node_pool 5)/snapshots" | grep -v :)" ]; }
check "nothing is left of them" until_true 20 nothing_left
finish
