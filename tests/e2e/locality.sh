#!/usr/bin/env bash
# Copies are spread over a label of nodes, the first one is where it was preferred, and a label of
# their own follows them: when a node is lost, when one is emptied, and when the volume is removed.
# A volume that wants it gets a copy where it is served.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

CONTROLLER=     # process of the controller
controller_start() {
    "$BIN_DIR/lockstep-csi" controller --endpoint "unix://$CLUSTER_DIR/csi.sock" \
        --daemon "$(node_server 4)" --labels-every-ms 200 >>"$CLUSTER_DIR/csi.log" 2>&1 &
    CONTROLLER=$!
    disown $!
}
controller_kill() {
    [ -n "$CONTROLLER" ] || return 0
    kill -KILL "$CONTROLLER" 2>/dev/null
    until_true 10 not process_alive "$CONTROLLER"
    CONTROLLER=
}
ON_CLEANUP+=(controller_kill)

explain() { lockstep explain volume "$1"; }
pods() { explain "$1" | sed -n 's/^ *pods run on \(.*\), by the label .*/\1/p'; }
pods_on() { [ "$(pods "$1")" = "$2" ]; }
# The label of a volume, as explain tells it.
label() { explain "$1" | sed -n 's/.* by the label \([^ ;]*\).*/\1/p'; }
unlabelled() { not says lockstep.node-restriction lockstep --json node list; }
no_copies_on() { [ -z "$(ls "$(node_pool "$1")/replicas")" ]; }
rack() { echo "r$((($1 + 1) / 2))"; }

[ -x "$BIN_DIR/lockstep-csi" ] || skip "there is no lockstep-csi in $BIN_DIR"
cluster_up 4 --rebuild-after-ms 2000 --forget-after-ms 500
for i in 3 2 1; do
    node_stop $i
    node_start $i --label "rack=$(rack $i)" --zone "z$i"
done
node_stop 4
node_start 4 --label "rack=$(rack 4)"

echo "-- placement"
check "a node tells its labels" says "label rack=r1" lockstep node show n1
check "the zone is one of them" says "label topology.kubernetes.io/zone=z1" lockstep node show n1
check_refused 2 "a key is a name" lockstep volume create v --size 1MiB --spread 'a b'
lockstep volume create v --size 64MiB --repl 2 --spread rack --prefer n2 >/dev/null ||
    die "no volume"
check "a copy is on the preferred node" holds v n2
check "the other one is in another rack" not holds v n1
check "it says how copies are spread" says "the label rack, now on r1, r2" explain v
check "it says that the preferred node has one" says "preferred (n2), n2 has a copy" explain v
check "nobody labels nodes yet" says "no controller has put the label" explain v
other=n3 third=n4
if holds v n4; then other=n4 third=n3; fi

echo "-- a label follows the copies"
controller_start
check "it is on the nodes with a copy" until_true 20 pods_on v "n2, $other"
key=$(label v)
check "the node shows it" says "label $key=replica" lockstep node show "$other"
lockstep volume create w --size 16MiB --repl 2 --spread rack --node n2 --node "$other" >/dev/null ||
    die "no volume"
check "a volume on the same nodes has the same label" until_true 10 says "$key" explain w
lockstep volume delete w >/dev/null || die "w stays"
fill v n2 8
if [ $other = n4 ]; then
    # The node with the record store can't be lost: the copy moves off it first.
    lockstep node evacuate n4 >/dev/null
    check "it follows a copy that is moved" until_true 40 pods_on v "n2, n3"
    lockstep node evacuate n4 --undo >/dev/null
    other=n3 third=n4
fi
check "it tells beforehand where a lost copy is built" says "\"rebuilt_on\":\"$third\"" \
    lockstep --json whatif node-down "$other"
check "and what becomes of the volume" says "1 of 1 volumes go on" \
    lockstep whatif node-down "$other"
check_refused 3 "there is no node" lockstep whatif node-down n9
node_kill "${other#n}"
check "it says what is waited for" until_true 10 says "waiting for a silent node" explain v
check "a copy is built elsewhere, and pods run there" until_true 40 pods_on v "n2, $third"
check "the label is the same" says "$key" explain v
# A copy that comes back before that may stay instead of the new one.
check "the lost copy is forgotten" until_true 20 copies v 2
node_start "${other#n}" --label "rack=$(rack "${other#n}")"
check "the node that is back has no copy" until_true 20 no_copies_on "${other#n}"
check "and no label" pods_on v "n2, $third"

echo "-- where it is used it stays"
lockstep node evacuate n2 >/dev/null
check "the copy leaves" until_true 40 not holds v n2
check "pods may stay where it is served" until_true 10 says "n2" pods v
lockstep detach v >/dev/null || die "not detached"
gone() { not says n2 pods v && [ -n "$(pods v)" ]; }
check "not when it is not used there any more" until_true 10 gone
lockstep node evacuate n2 --undo >/dev/null

echo "-- the last volume takes its label along"
controller_kill
lockstep volume delete v >/dev/null || die "v stays"
check "the label is there while nobody looks" says "$key" lockstep --json node list
controller_start
check "then it goes" until_true 20 unlabelled

echo "-- a copy follows a volume"
lockstep volume create f --size 16MiB --repl 1 --follow --prefer n1 >/dev/null || die "no volume"
check "it begins where it was preferred" holds f n1
check "pods run there" until_true 10 pods_on f n1
fill f n4 8
check "it is served over the network" says "serves the volume, over the network" explain f
check "a copy is made where it is served" until_true 40 holds f n4
check "the other one goes" until_true 40 copies f 1
check "pods run there now" until_true 10 pods_on f n4
check "the data is there" same_data "$uri"
finish
