#!/usr/bin/env bash
# The number of copies of a live volume is changed up and down, and so is the fewest that a write
# may have, while a client writes.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp fio

files() { # files N: so many nodes have files of a replica.
    [ "$(find "$CLUSTER_DIR"/n*/pool/replicas -mindepth 1 -maxdepth 1 | wc -l)" -eq "$1" ]
}

cluster_up 4 --rebuild-after-ms 2000 --forget-after-ms 500
lockstep volume create v --size 64MiB --repl 1 --node n1 >/dev/null || die "no volume"
fill v n1 8
writes() { # a client that writes for 20 s, beside what is compared
    cd "$CLUSTER_DIR" || return
    exec fio --name=w --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --offset=32M --size=16M \
        --iodepth=4 --time_based --runtime=20 --rate_iops=300 --verify=crc32c --do_verify=0
}
writes >"$CLUSTER_DIR/fio" 2>&1 &
writer=$!

echo "-- more copies"
check_status 2 "six copies are too many" lockstep volume set v --repl 6
check_status 2 "a write cannot have more copies than there are" \
    lockstep volume set v --repl 2 --min-in-sync 3
check "three copies are wanted, two for each write" says "once so many are in sync" \
    lockstep volume set v --repl 3 --min-in-sync 2
check "they are built" until_true 30 in_sync v 3
check "then each write has two" until_true 10 says '"min_in_sync":2' show v
check "the volume is healthy" until_true 10 healthy v

echo "-- fewer copies"
check "two copies are wanted" lockstep volume set v --repl 2
check "one leaves" until_true 20 copies v 2
check "the two left are in sync" until_true 10 in_sync v 2
check "its files are gone" until_true 20 files 2
check "not the copy beside the primary" says '"node":"n1","pool"' show v
check "the volume is healthy" until_true 10 healthy v
check "the data is there" same_data "$uri"
check "one copy is wanted" lockstep volume set v --repl 1
check "the other one leaves" until_true 20 copies v 1
check "its files are gone, too" until_true 20 files 1

echo "-- asked of another node, while a copy is away"
check "two copies are wanted" lockstep_on 2 volume set v --repl 2 --min-in-sync 2
check "they are there" until_true 30 in_sync v 2
check "each write has two" until_true 10 says '"min_in_sync":2' show v
away=$(show v | grep -o '"node":"n[234]","pool"' | grep -o '[234]' | head -n 1)
[ "$away" != 4 ] || away=
if [ -n "$away" ]; then
    node_kill "$away"
    check "writes wait for the second copy" until_true 20 says '"health":"below_min"' show v
    check "one is enough, says the owner" lockstep volume set v --min-in-sync 1
    check "writes go on" until_true 20 says '"phase":"active"' show v
    node_start "$away"
fi
check "all is well again" until_true 30 healthy v
wait $writer
check "no write failed" grep -q "err= 0" "$CLUSTER_DIR/fio"
check "the data is there" same_data "$uri"
check "the volume is detached" lockstep detach v
finish
