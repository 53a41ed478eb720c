#!/usr/bin/env bash
# Limits of a live volume: requests wait while they are in force, go on when they are lifted, and
# keep nobody from detaching it. They are kept with the volume.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

COPIER=
copier_end() { [ -z "$COPIER" ] || kill "$COPIER" 2>/dev/null; }
ON_CLEANUP+=(copier_end)
# copies FROM TO: copies in the background.
copies_begin() {
    nbdcopy "$1" "$2" >"$CLUSTER_DIR/copier" 2>&1 &
    COPIER=$!
}
ended() { not process_alive "$COPIER"; }
writes() { [ "$(acked_writes v)" -eq "$1" ]; }

cluster_up 2
check_status 2 "a rate is a size" lockstep volume create x --size 1MiB --max-bandwidth fast
lockstep volume create v --size 64MiB --repl 2 --max-bandwidth 1 >/dev/null || die "no volume"
check "a limit is shown" says '"max_bytes_per_s":1,' show v

echo "-- requests wait"
head -c 8M /dev/urandom >"$CLUSTER_DIR/input"
uri=$(lockstep attach v --node n1 2>/dev/null) || die "not attached"
copies_begin "$CLUSTER_DIR/input" "$uri"
check "the first one passes" until_true 10 writes 1
# After it nothing is left for days.
check "the others wait" writes 1
check "who waits is still there" process_alive "$COPIER"
check "the limit is lifted by way of another node" lockstep volume set v --max-bandwidth 0
check "they go on" until_true 20 ended
check "the data is there" same_data "$uri" "$CLUSTER_DIR/input"

echo "-- limits stay with the volume"
check "another limit" says "at most 5000 requests in a second" \
    lockstep volume set v --max-iops 5000 --max-bandwidth 1
check_status 2 "nothing to set" lockstep volume set v
lockstep detach v >/dev/null || die "not detached"
uri=$(lockstep attach v --node n2 2>/dev/null) || die "not attached"
check "it is shown" says '"max_iops":5000,' show v
copies_begin "$uri" "$CLUSTER_DIR/output"
reads() { not says '"reads":0,' show v; }
check "requests are held back again" until_true 10 reads
check "nobody waits for them to detach it" lockstep detach v --force
check "whoever waited is told" until_true 20 ended
finish
