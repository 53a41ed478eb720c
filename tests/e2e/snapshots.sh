#!/usr/bin/env bash
# May be skipped where nobody may mount.
# Snapshots, and volumes made from them: under load and of a volume at rest; larger than their
# source; deleted in any order; nothing left. Pools that can't share blocks say so.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp mkfs.xfs fio
[ "$(id -u)" -eq 0 ] || skip "needs root, to mount a file system for the pools"

POOLS=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-pools.XXXXXX") || exit 1
away() {
    umount -l "$POOLS/xfs" 2>/dev/null
    rm -rf "$POOLS/xfs.img"
    rmdir "$POOLS/xfs" "$POOLS" 2>/dev/null
}
ON_CLEANUP+=(away)
truncate -s 3G "$POOLS/xfs.img" && mkdir "$POOLS/xfs" || die "no image"
mkfs.xfs -q "$POOLS/xfs.img" || die "no file system"
if ! mount -o loop "$POOLS/xfs.img" "$POOLS/xfs" 2>"$POOLS/said"; then
    why=$(cat "$POOLS/said")
    rm -f "$POOLS/said" && away
    skip "no loop mount here: $why"
fi
rm -f "$POOLS/said"
node_pool() { echo "$POOLS/xfs/n$1"; }
# The last node owns the record store, and has no copies.
cluster_up 4
snapshots_on() { find "$(node_pool "$1")/snapshots" -mindepth 1 -maxdepth 1 | wc -l; }
no_snapshots() { [ "$(snapshots_on 1)$(snapshots_on 2)$(snapshots_on 3)" = 000 ]; }
used_mib() { df --output=used -B1M "$POOLS/xfs" | tail -n 1 | tr -d ' '; }

echo "-- a snapshot of a volume that is attached, and one made from it"
lockstep volume create v --size 64MiB --node n1 --node n2 --node n3 >/dev/null || die "no volume"
fill v n1 40
cp "$input" "$CLUSTER_DIR/first"
before=$(used_mib)
check "taken" lockstep snapshot create v s1
check "once more is the same" lockstep snapshot create v s1
check "it shares its blocks" test "$(used_mib)" -lt $((before + 40))
check "it is listed" says "s1" lockstep snapshot list
fill v n1 40
check "a volume is made from it" lockstep volume create c1 --from-snapshot s1
curi=$(lockstep attach c1 --node n2) || die "c1 is not attached"
check "it has what was there then" same_data "$curi" "$CLUSTER_DIR/first"
check "the source has what is there now" same_data "$uri"
check_refused 4 "snapshot s1 is there already" lockstep snapshot create c1 s1
head -c $((8 << 20)) /dev/urandom >"$CLUSTER_DIR/other"
check "the clone is written" nbdcopy --flush "$CLUSTER_DIR/other" "$curi"
check "the source is not" same_data "$uri"
check "a scrub finds the clone's copies alike" lockstep volume scrub c1 --wait

echo "-- larger, from a volume, of one at rest"
check "a larger one" lockstep volume create c2 --from-snapshot s1 --size 128MiB
check_refused 2 "ask for as much or more" lockstep volume create c3 --from-snapshot s1 --size 8MiB
u=$(lockstep attach c2 --node n3) || die "c2 is not attached"
check "begins with the same" same_data "$u" "$CLUSTER_DIR/first"
check "and its end is there" test "$(nbdinfo --size "$u")" -eq $((128 << 20))
lockstep detach c2 >/dev/null
lockstep detach v >/dev/null || die "not detached"
check "of a volume at rest" lockstep snapshot create v s2
check "it is at rest afterwards" says "not attached" lockstep volume show v
check "from a volume" lockstep volume create c4 --from-volume v
u=$(lockstep attach c4 --node n1) || die "c4 is not attached"
check "it has what the volume has" same_data "$u"
lockstep detach c4 >/dev/null
check "what was taken for that is gone" not says ".for-" lockstep --json snapshot list
lost() { lockstep volume create x --from-snapshot nothing; }
check_status 3 "no such snapshot" lost

echo "-- under load"
u=$(lockstep attach v --node n1) || die "not attached"
(cd "$CLUSTER_DIR" && fio --name=load --ioengine=nbd --uri="$u" --rw=randwrite --bs=4k --iodepth=16 \
    --time_based --runtime=15 --verify=crc32c --verify_async=1 --do_verify=0 --size=48m \
    >"$CLUSTER_DIR/fio" 2>&1) &
load=$!
sleep 2
for n in 1 2 3 4 5; do
    check "taken under load" lockstep snapshot create v "l$n"
done
wait $load || fail "fio: $(tail -n 3 "$CLUSTER_DIR/fio")"
pauses=$(lockstep --json snapshot list --volume v | grep -o '"pause_us":[0-9]*' | cut -d: -f2 | sort -n | tr '\n' ' ')
echo "writes waited (us): $pauses"
check "one made from it is whole" lockstep volume create cl --from-snapshot l3
lockstep attach cl --node n2 >/dev/null || die "cl is not attached"
check "and its copies are alike" lockstep volume scrub cl --wait
lockstep detach cl >/dev/null

echo "-- a node away"
node_kill 3
until_true 20 in_sync v 2 || die "n3 is not removed"
check "taken without it" lockstep_on 1 snapshot create v two
check "deleted while it is away" lockstep_on 1 snapshot delete s1
count3=$(snapshots_on 3)
gone_there() { [ "$(snapshots_on 3)" -lt "$count3" ]; }
node_start 3
check "it removes its copy when it is back" until_true 20 gone_there

echo "-- deleted in any order"
lockstep detach v >/dev/null
lockstep detach c1 >/dev/null
check "the source first" lockstep volume delete v
check "its snapshots are there" says "s2" lockstep snapshot list
lockstep volume create v --size 16MiB --node n1 --node n2 --node n3 >/dev/null || die "no volume"
check_refused 4 "of an earlier volume v" lockstep snapshot create v s2
check "another volume of that name" lockstep volume delete v
check "a volume is made from one" lockstep volume create late --from-snapshot s2
for n in s2 l1 l2 l3 l4 l5 two; do check "$n" lockstep snapshot delete "$n"; done
u=$(lockstep attach late --node n2) || die "late is not attached"
check "which does not need it" lockstep volume scrub late --wait
lockstep detach late >/dev/null
for n in c1 c2 c4 cl late; do check "$n" lockstep volume delete "$n"; done
check "no snapshot is left in any pool" until_true 20 no_snapshots
check "nor in the list" says "no snapshots" lockstep snapshot list

echo "-- a pool that can't share blocks"
node_stop 1
plain=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-plain.XXXXXX")
ON_CLEANUP+=("rm -rf '$plain'")
if cp --reflink=always /dev/null "$plain/x" 2>/dev/null && head -c 4096 /dev/zero >"$plain/y" &&
    cp --reflink=always "$plain/y" "$plain/z" 2>/dev/null; then
    echo "this machine's temporary directory can share blocks"
else
    node_start 1 --pool "plain=$plain/pool"
    lockstep volume create p --size 16MiB --repl 1 --node n1 --pool plain >/dev/null || die "no volume"
    check_refused 4 "snapshots need XFS or btrfs" lockstep snapshot create p no
    check "nothing is left of it" says "no snapshots" lockstep snapshot list
fi
finish
