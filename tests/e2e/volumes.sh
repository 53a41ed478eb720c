#!/usr/bin/env bash
# The life of a volume by the command line: made, attached, written, read back, moved, detached,
# deleted; every step twice, since each must be repeatable; and every bad value refused.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

cluster_up 3
input=$CLUSTER_DIR/input
head -c $((12 << 20)) /dev/urandom >"$input"

echo "-- bad values"
check_refused 2 "size_bytes = 0" lockstep volume create v --size 0
check_refused 2 "whole blocks" lockstep volume create v --size 1000001
check_refused 2 "too large" lockstep volume create v --size 17TiB
check_refused 2 "not a size" lockstep volume create v --size 5parsecs
check_refused 2 "repl = 6" lockstep volume create v --size 64MiB --repl 6
check_refused 2 "--repl 0" lockstep volume create v --size 64MiB --repl 0
check_refused 2 "min_in_sync = 4" lockstep volume create v --size 64MiB --min-in-sync 4
check_refused 2 "a-z 0-9" lockstep volume create Bad_Name --size 64MiB
check_refused 2 "a-z 0-9" \
    lockstep volume create "$(head -c 100000 /dev/zero | tr '\0' a)" --size 64MiB
check_refused 2 "named twice" lockstep volume create v --size 64MiB --repl 2 --node n1 --node n1
check_refused 2 "1 are named" lockstep volume create v --size 64MiB --repl 2 --node n1
check_refused 3 "no node \`n9\`" lockstep volume create v --size 64MiB --repl 1 --node n9
check_refused 4 "the cluster has 3" lockstep volume create v --size 64MiB --repl 5
check_refused 4 "has no pool fast" lockstep volume create v --size 64MiB --pool fast
check_refused 4 "free" lockstep volume create v --size 16TiB
check_refused 3 "no volume \`nothing\`" lockstep volume show nothing
check_refused 3 "no volume \`nothing\`" lockstep attach nothing
check_refused 3 "no volume \`nothing\`" lockstep detach nothing
check_refused 2 "unexpected argument" lockstep volume create v --sise 1
check_refused 2 "--wait" lockstep attach v --wait=99999
check_refused 5 "no daemon answers" "$BIN_DIR/lockstep" --server unix:///nowhere/sock status
check_refused 2 "no daemon's address" "$BIN_DIR/lockstep" --server somewhere status
check "nothing was left behind" test "$(lockstep --json volume list)" = '{"volumes":[]}'

echo "-- making"
check "a volume is made" lockstep volume create v --size 64MiB
check "the same again is no error" lockstep volume create v --size 64MiB --repl 3
check_refused 4 "size_bytes is 67108864" lockstep volume create v --size 65MiB
check_refused 4 "repl is 3, not 2" lockstep volume create v --size 64MiB --repl 2
check "any daemon knows it" lockstep_on 1 volume show v
check "fewer copies than wanted, if that was allowed" \
    lockstep volume create wide --size 8MiB --repl 5 --allow-degraded
check "it says how many it has" says '3 of 5 copies' lockstep volume show wide
check "a single copy on a chosen node" lockstep volume create one --size 8MiB --repl 1 --node n2

echo "-- attaching"
uri=$(lockstep attach v --node n1 2>/dev/null)
check "attaching prints an NBD URI" test "${uri%%:*}" = nbd+unix
check "data is written" nbdcopy --flush "$input" "$uri"
again=$(lockstep attach v --node n1 2>/dev/null)
check "attaching again gives the same URI" test "$again" = "$uri"
check_refused 4 "n1 serves it" lockstep attach v --node n2 --wait 1
check_refused 4 "detach it first" lockstep volume delete v
check "the refusals did no harm" same_data "$uri"
check "over TCP as well" same_data "nbd://$(node_nbd_address 1)/v"
check "all copies are in sync" in_sync v 3

echo "-- taking it by force"
uri2=$(lockstep attach v --node n2 --force 2>/dev/null)
check "the data is there" same_data "$uri2"
check "the former primary's door is closed" until_true 10 not nbdcopy "$uri" - </dev/null
check "it says where it is" says 'attached on n2' lockstep volume show v

echo "-- detaching"
check "detached from anywhere" lockstep_on 1 detach v
check "detaching again is no error" says 'was not attached' lockstep detach v
check "its socket is gone" not test -e "$(node_dir 2)/nbd/v.sock"
for i in 1 2 3; do cp "$(replica_data v $i)" "$CLUSTER_DIR/copy$i"; done
check "copies 1 and 2 are equal" cmp "$CLUSTER_DIR/copy1" "$CLUSTER_DIR/copy2"
check "copies 1 and 3 are equal" cmp "$CLUSTER_DIR/copy1" "$CLUSTER_DIR/copy3"
check "the data is in them" cmp -n "$(stat -c %s "$input")" "$CLUSTER_DIR/copy1" "$input"

echo "-- a client that stays"
uri=$(lockstep attach v --node n3 2>/dev/null)
if command -v nbdinfo >/dev/null && command -v qemu-io >/dev/null; then
    sleep 60 | qemu-io -f raw "$uri" >/dev/null 2>&1 &
    stays=$!
    ON_CLEANUP+=("kill $stays 2>/dev/null")
    check "the client is counted" \
        until_true 10 says '"clients":1' lockstep_on 3 --json node show
    check_refused 4 "client(s) connected" lockstep detach v
    check "unless it is forced" lockstep detach v --force
    kill $stays 2>/dev/null
else
    check "detached" lockstep detach v
fi

echo "-- serving until told to stop"
"$BIN_DIR/lockstep" --server "$(node_server 2)" attach v --export \
    >"$CLUSTER_DIR/export" 2>/dev/null &
exporter=$!
check "the URI is printed at once" until_true 10 test -s "$CLUSTER_DIR/export"
check "it is served" same_data "$(head -n 1 "$CLUSTER_DIR/export")"
kill -INT $exporter
wait $exporter
check "the command ends in good order" test $? -eq 0
check "and the volume is detached" says 'not attached' lockstep volume show v

echo "-- deleting"
for v in v wide one; do check "$v is deleted" lockstep volume delete $v; done
check "deleting again is no error" says 'was no volume' lockstep volume delete v
for i in 1 2 3; do
    check "n$i keeps no replica" test -z "$(ls "$(node_pool $i)/replicas")"
done
check "the name can be used again" lockstep volume create v --size 8MiB
head -c $((8 << 20)) /dev/zero >"$CLUSTER_DIR/zeroes"
check "as an empty volume" same_data "$(lockstep attach v 2>/dev/null)" "$CLUSTER_DIR/zeroes"
finish
