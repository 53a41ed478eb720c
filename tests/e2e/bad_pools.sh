#!/usr/bin/env bash
# Pools that cannot be used, or not any more: another node's, in use, not empty, with damaged
# superblocks; and configurations that make no sense. Each says what is wrong; nothing is lost.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

# check_no_start WORDS FLAG…: a daemon of a node of its own, with these flags on top, does not start
# and says these words.
check_no_start() {
    local words=$1 output status
    shift
    output=$(timeout 20 "$BIN_DIR/lockstepd" --node other --cluster "$CLUSTER_UUID" \
        --meta "http://$(node_admin_address 4)" --socket "$CLUSTER_DIR/other.sock" \
        --peer-listen "$(node_ip 9):7170" --admin-listen "$(node_ip 9):7171" \
        --nbd-dir "$CLUSTER_DIR/other.nbd" "$@" 2>&1 </dev/null)
    status=$?
    if [ $status -ne 0 ] && [ $status -ne 124 ] && grep -qF -- "$words" <<<"$output"; then
        pass "refused: $words"
    else
        fail "lockstepd $* ended with $status and did not say \`$words\`: $(tail -n 3 <<<"$output")"
    fi
}

cluster_up 4 --rebuild-after-ms 600000
lockstep volume create v --size 32MiB --node n1 --node n2 --node n3 >/dev/null || die "no volume"
fill v n1 8

pool1=$(node_pool 1)

echo "-- whose pool it is"
check_no_start "in use by process $(node_pid 1)" --node n1 --pool "default=$pool1"
check_no_start "belongs to node n1" --pool "default=$pool1"
check_no_start "belongs to cluster" --cluster "$(cat /proc/sys/kernel/random/uuid)" --node n1 \
    --pool "default=$pool1"
check_no_start "belongs to pool default" --node n1 --pool "fast=$pool1"
mkdir "$CLUSTER_DIR/things" && touch "$CLUSTER_DIR/things/holiday.jpg"
check_no_start "holiday.jpg" --pool "default=$CLUSTER_DIR/things"
check "which is left alone" test "$(ls "$CLUSTER_DIR/things")" = holiday.jpg
check_no_start "$CLUSTER_DIR/things/holiday.jpg" --pool "default=$CLUSTER_DIR/things/holiday.jpg"
check_no_start "two pools have this name" --pool "a=$CLUSTER_DIR/p" --pool "a=$CLUSTER_DIR/q"
check_no_start "two pools have this directory" --pool "a=$CLUSTER_DIR/p" --pool "b=$CLUSTER_DIR/p"
mkdir "$CLUSTER_DIR/future"
sed 's/"version": *1/"version": 99/' "$pool1/pool.json" >"$CLUSTER_DIR/future/pool.json"
check_no_start "upgrade this node" --pool "default=$CLUSTER_DIR/future"
mkdir "$CLUSTER_DIR/garbled"
echo garbled >"$CLUSTER_DIR/garbled/pool.json"
check_no_start "is not a pool identity" --pool "default=$CLUSTER_DIR/garbled"

echo "-- what else must differ"
check_no_start "cannot listen" --peer-listen "$(node_peer_address 1)"
check_no_start "admin_listen" --admin-listen "$(node_admin_address 1)"
check_no_start "nbd_listen" --nbd-listen "$(node_nbd_address 1)"
check_no_start "does another daemon run with this socket" --socket "$(node_dir 1)/sock"
check_no_start "already open in" --meta "embedded:$(node_dir 4)/meta.redb"
check_no_start "is node n2 already" --node n2
check_no_start "allowed are embedded:/absolute/path" --meta somewhere
check_no_start "--rebuild-after-ms" --rebuild-after-ms soon
check_no_start "--incoming-resyncs" --incoming-resyncs 0
check_no_start "at most" --socket "/$(printf 'a%.0s' {1..200})"
echo 'pools = []' >"$CLUSTER_DIR/config.toml"
check_no_start "unknown key \`pools\`" --config "$CLUSTER_DIR/config.toml"
echo garbled >"$CLUSTER_DIR/garbled.redb"
check_no_start "garbled.redb" --meta "embedded:$CLUSTER_DIR/garbled.redb"
check "the configuration can be checked by itself" \
    says "is good" "$BIN_DIR/lockstepd" --check-config --node a --meta http://a:1 \
    --cluster "$CLUSTER_UUID" --peer-listen 127.0.0.1:1 --admin-listen 127.0.0.1:2
check "all that did no harm" same_data "$uri"
check "nor to any copy" healthy v

echo "-- damaged superblocks"
meta=$(dirname "$(replica_data v 2)")/meta
damage() { # damage COPY: noise in the midst of a superblock of n2's copy; its daemon is stopped.
    head -c 64 /dev/urandom | dd of="$meta" bs=1 seek=$(($1 * 4096 + 16)) conv=notrunc status=none
}
for copy in 0 1; do
    node_stop 2
    damage $copy
    node_start 2
    check "with only superblock $copy damaged the copy comes back" until_true 20 healthy v
    check "and the volume is served" same_data "$uri"
done
node_stop 2
cp "$meta" "$CLUSTER_DIR/meta.before"
damage 0
damage 1
node_start 2
check "with both damaged the daemon starts, and says so" \
    until_true 10 says "both superblocks are damaged" lockstep_on 2 node show
check "the volume is served by the others" same_data "$uri"
check "and says what is wrong" until_true 10 \
    says "the copy on n2 cannot be used: both superblocks" \
    lockstep volume show v
check "its files are left alone" test -s "$(dirname "$meta")/data"
check "a new copy can be built elsewhere" lockstep volume add-replica v --node n4
check "which fills by itself" until_true 30 in_sync v 3
node_stop 2
cp "$CLUSTER_DIR/meta.before" "$meta"
node_start 2
check "with its superblocks restored the copy comes back as well" until_true 30 in_sync v 4
check "with all data" same_data "$uri"
lockstep detach v >/dev/null
for i in 2 3 4; do
    check "the copies on n1 and n$i are equal" cmp "$(replica_data v 1)" "$(replica_data v $i)"
done
finish
