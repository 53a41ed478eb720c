#!/usr/bin/env bash
# A daemon starts while the disk of its pool is not mounted: it finds an empty directory, and must
# take nothing for lost. A pool that is lost for good is forgotten. Zones, and pools that promise more
# than they have.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

log_says() { grep -qF -- "$2" "$(node_log "$1")"; }

cluster_up 4 --rebuild-after-ms 8000 --forget-after-ms 500
lockstep volume create v --size 32MiB --repl 2 --node n1 --node n2 >/dev/null || die "no volume"
fill v n3 8
lockstep detach v >/dev/null || die "not detached"

echo "-- not mounted"
node_stop 1
mv "$(node_pool 1)" "$CLUSTER_DIR/unmounted"
node_launch 1
check "the daemon says what is wrong" until_true 20 log_says 1 "is not the one that node n1 had"
check "and what to do" log_says 1 "lockstep node forget-pool n1 default"
check "it says so to those who ask" says "mount it and restart" lockstep node show n1
check "it is not ready" not test -e "$(node_dir 1)/ready"
check "nothing is made there" refused "n1" lockstep volume create w --size 8MiB --repl 1 --node n1
uri=$(lockstep attach v --node n3 2>/dev/null) || die "not attached with one copy"
check "its copy is not told as lost" not says "has no files of it" lockstep volume show v
node_stop 1
rm -rf "$(node_pool 1)"
mv "$CLUSTER_DIR/unmounted" "$(node_pool 1)"
node_start 1
check "mounted, it serves again" until_true 20 in_sync v 2
check "the data is there" same_data "$uri"

echo "-- lost for good"
check "a pool that is there is not forgotten" \
    refused "nothing is lost" lockstep node forget-pool n2 default
node_stop 2
rm -rf "$(node_pool 2)"
node_launch 2
check "the new disk is refused at first" \
    until_true 20 log_says 2 "is not the one that node n2 had"
check "the old one is forgotten" lockstep node forget-pool n2 default
check "which is enough" node_ready 2
check "two copies are in sync again" until_true 40 in_sync v 2
check "the data is there" same_data "$uri"
lockstep detach v >/dev/null
check "what was forgotten is not known" says "had no pool" lockstep node forget-pool n2 other

echo "-- zones"
for i in 1 2 3; do node_stop $i; done
for i in 1 2; do node_start $i --zone east; done
node_start 3 --zone west
check "a node tells its zone" says "zone east" lockstep node show n1
check "it is listed" says '"zone":"west"' lockstep --json node list
node_stop 1
check "a node that is away keeps it" says "zone east" lockstep node show n1
node_start 1 --zone east
for v in a b c; do
    lockstep volume create $v --size 8MiB --repl 2 >/dev/null || die "no volume $v"
done
apart() { # apart VOLUME: its copies are in two zones.
    local zones
    zones=$(for n in n1 n2 n3 n4; do
        holds "$1" $n && case $n in n1 | n2) echo east ;; n3) echo west ;; *) echo none ;; esac
    done)
    [ "$(sort -u <<<"$zones" | wc -l)" -eq 2 ]
}
for v in a b c; do check "the copies of $v are in two zones" apart $v; done

echo "-- more promised than there is"
node_stop 4
node_start 4 --pool "tight=$CLUSTER_DIR/tight,capacity=64MiB" \
    --pool "thin=$CLUSTER_DIR/thin,capacity=64MiB,overcommit=300%"
make() { lockstep volume create "$1" --pool "$2" --repl 1 --node n4 --size 40MiB; }
check "a volume fits" make t1 tight
check "a second one does not, and it says what to do" refused "overcommit" make t2 tight
for i in 1 2 3 4; do check "a thin pool takes number $i" make "u$i" thin; done
check "but not any number" refused "overcommit" make u5 thin
finish
