#!/usr/bin/env bash
# Copies that are lost and come back: a new one is built elsewhere by itself, a node that returns
# brings its copy up to date or drops it, deleted volumes are dropped when a node is back, and
# volumes are served on while the record store is away.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

cluster_up 5 --rebuild-after-ms 2000 --forget-after-ms 500
for v in v w; do
    lockstep volume create $v --size 32MiB --node n1 --node n2 --node n3 >/dev/null ||
        die "no volume"
done
fill v n1 8

echo "-- a node is lost"
node_kill 3
check "its copy is taken out" until_true 20 in_sync v 2
check "the volume says what happens" says "2 s is built anew" lockstep volume show v
check "a new copy is built by itself" until_true 30 in_sync v 3
check "and the lost one is forgotten" until_true 10 not holds v n3
check "the volume is healthy" healthy v
check "the data is there" same_data "$uri"

echo "-- a volume is deleted while a node is away"
says_pending=$(lockstep volume delete w)
check "it says who is still to drop its copy" grep -q 'not reached: n3' <<<"$says_pending"
check "it is gone" not lockstep volume show w
node_start 3
empty() { [ -z "$(ls "$1")" ]; }
check "the node drops its stale copies when it is back" until_true 20 empty \
    "$(node_pool 3)/replicas"

echo "-- a node is back before its copy is replaced"
node_kill 2
dd if="$input" of="$CLUSTER_DIR/part" bs=1M count=1 status=none
nbdcopy --flush "$CLUSTER_DIR/part" "$uri"
node_start 2
check "its copy is brought up to date" until_true 20 in_sync v 3
check "the volume is healthy" until_true 10 healthy v

echo "-- the record store is away"
owner=5
node_kill $owner
check "the volume is served on" same_data "$uri"
check "and takes writes" nbdcopy --flush "$input" "$uri"
check "a node says what is missing" until_true 20 says "record store" lockstep_on 1 node show
check "a call that needs it says so" test "$(
    lockstep_on 1 volume show v >/dev/null 2>&1
    echo $?
)" -eq 5
node_start $owner
check "all is well when it is back" until_true 20 healthy v
check "nodes are ready again" until_true 20 says '"ready":true' lockstep_on 1 --json node show

echo "-- all nodes restart"
for i in 1 2 3 4 5; do node_kill $i; done
for i in 5 4 3 2 1; do node_launch $i; done
for i in 5 4 3 2 1; do node_ready $i || die "n$i did not become ready"; done
uri=$(lockstep attach v --node n1 --wait 60 2>/dev/null)
check "the volume can be attached again" test -n "$uri"
check "with all its data" same_data "$uri"
check "all copies come back" until_true 30 in_sync v 3
check "a daemon that stops closes its volumes" node_stop 1
check "so that it is clean" says '"clean":true' show v
finish
