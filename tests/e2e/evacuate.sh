#!/usr/bin/env bash
# A node is emptied while its volumes are used, and removed; a copy that comes back beside its
# replacement is one too many, and goes; a node that is gone is removed.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

empty() { [ -z "$(ls "$(node_pool "$1")/replicas")" ]; }
# never_below VOLUME N FILE: watches; writes to FILE if ever fewer are in sync.
never_below() {
    local seen
    while [ ! -e "$CLUSTER_DIR/watched" ]; do
        seen=$(show "$1" | grep -o '"in_sync"' | wc -l)
        [ "$seen" -ge "$2" ] || echo "$seen" >>"$3"
        sleep 0.05
    done
}

cluster_up 5 --rebuild-after-ms 2000 --forget-after-ms 500
for v in v w; do
    lockstep volume create $v --size 64MiB --node n1 --node n2 --node n3 >/dev/null ||
        die "no volume"
done
fill v n1 8

echo "-- a node is emptied"
never_below v 3 "$CLUSTER_DIR/below" &
watcher=$!
check "it says what is to be done" says "2 of its copies are left" lockstep node evacuate n2
check "the node shows it" says "being emptied" lockstep node list
check "a detached volume waits" says "lockstep attach w" lockstep node evacuate n2
check "the copy moves" until_true 40 not holds v n2
touch "$CLUSTER_DIR/watched"
wait $watcher
check "there were never fewer copies than wanted" test ! -e "$CLUSTER_DIR/below"
check "exactly three are in sync" until_true 10 in_sync v 3
check "the volume is healthy" until_true 10 healthy v
check "the data is there" same_data "$uri"
lockstep volume create x --size 16MiB --repl 4 >/dev/null || die "no volume beside it"
check "it gets no new copies" not holds x n2
other=$(lockstep attach w --node n3 2>/dev/null) || die "w is not attached"
check "a volume that is attached moves, too" until_true 40 empty 2
check "that one is healthy" until_true 10 healthy w
lockstep detach w >/dev/null
check "nothing is left" says "no copies left" lockstep node evacuate n2

echo "-- it is removed"
check "not while it runs" refused "stop its daemon" lockstep node remove n2
node_stop 2
check "it is forgotten" lockstep node remove n2
check "the others are known" says '"name":"n3"' lockstep --json node list
check "nobody knows it" not says '"name":"n2"' lockstep --json node list
node_start 2
check "started again, it is a node like any other" says '"evacuating":false' \
    lockstep --json node list

echo "-- emptying is stopped"
node=$(show v | grep -o '"node":"n[45]","pool"' | grep -o 'n[45]' | head -n 1)
lockstep node evacuate "$node" >/dev/null
check "it is stopped" says "gets new ones again" lockstep node evacuate "$node" --undo
check "the volume has as many copies as wanted" until_true 40 copies v 3
check "all in sync" until_true 20 in_sync v 3
check "it is healthy" until_true 20 healthy v

echo "-- a copy comes back beside its replacement"
node_kill 3
check "it is taken out" until_true 20 not healthy v
check "another one is built" until_true 40 in_sync v 3
node_start 3
check "there are exactly three copies" until_true 40 copies v 3
check "all in sync" until_true 20 in_sync v 3
check "it is healthy" until_true 20 healthy v
check "the data is there" same_data "$uri"

echo "-- a node is gone for good"
gone=$(show v | grep -o '"node":"n[234]","pool"' | grep -o '[234]' | head -n 1)
node_kill "$gone"
check "it is forgotten" lockstep node remove "n$gone"
check "its copy is built elsewhere at once" until_true 40 in_sync v 3
check "the volume is healthy" until_true 20 healthy v
check "the data is there" same_data "$uri"
last=2
[ "$gone" != 2 ] || last=3
lockstep volume create y --size 16MiB --repl 1 --node n$last >/dev/null || die "no third volume"
node_kill $last
check "a node with the last copy of a volume stays" refused "all data of y" \
    lockstep node remove n$last
node_start $last
check "all is well" until_true 20 healthy v
finish
