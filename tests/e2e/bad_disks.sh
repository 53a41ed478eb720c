#!/usr/bin/env bash
# Pools on file systems that are read-only or full.
# May be skipped: mounting needs privileges that a container may not have.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp mount umount

stranger() { # stranger POOL: starts the daemon of another node, in the foreground.
    timeout 20 "$BIN_DIR/lockstepd" --node other --cluster "$CLUSTER_UUID" \
        --meta "http://$(node_admin_address 3)" --socket "$CLUSTER_DIR/other.sock" \
        --peer-listen "$(node_ip 9):7170" --admin-listen "$(node_ip 9):7171" \
        --nbd-dir "$CLUSTER_DIR/other.nbd" --pool "default=$1"
}

mounts=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-e2e-disks.XXXXXX") || exit 1
ON_CLEANUP+=("umount -l $mounts/small $mounts/fixed 2>/dev/null; rm -rf $mounts")
mkdir "$mounts/small" "$mounts/fixed"
mount -t tmpfs -o size=48m tmpfs "$mounts/small" 2>/dev/null || skip "mounting is not allowed"
mount -t tmpfs -o size=8m,ro tmpfs "$mounts/fixed" || die "the second mount failed"

cluster_up 3 --rebuild-after-ms 600000
input=$CLUSTER_DIR/input
head -c $((24 << 20)) /dev/urandom >"$input"
roomy() { [ $(($(stat -fc "%f * %S" "$1"))) -gt $((40 << 20)) ]; }

echo "-- read-only"
check_refused 1 "can't be written" stranger "$mounts/fixed"

echo "-- too small"
node_stop 1
node_start 1 --pool "small=$mounts/small"
small=(--pool small --repl 1 --node n1)
check_refused 4 "free" lockstep volume create big "${small[@]}" --size 64MiB
check_refused 4 "has no pool small" lockstep volume create big --pool small --repl 2 --size 8MiB
check "a volume that fits is made" lockstep volume create s "${small[@]}" --size 32MiB
check "and one elsewhere" lockstep volume create v --size 32MiB

echo "-- full"
uri=$(lockstep attach v --node n1 2>/dev/null)
uri_small=$(lockstep attach s --node n1 2>/dev/null)
head -c $((64 << 20)) /dev/zero >"$mounts/small/filler" 2>/dev/null
nbdcopy --flush "$input" "$uri_small" >/dev/null 2>&1 &
writer=$!
ON_CLEANUP+=("kill $writer 2>/dev/null")
check "a write to a full pool waits, and it says why" \
    until_true 10 says "no space left" lockstep volume show s
check "the daemon lives" node_alive 1
check "its other pool serves" nbdcopy --flush "$input" "$uri"
check "and keeps what it got" same_data "$uri"
rm "$mounts/small/filler"
wait $writer
check "with room again the write is done" test $? -eq 0
check "and kept" same_data "$uri_small"
head -c $((64 << 20)) /dev/zero >"$mounts/small/filler" 2>/dev/null
node_stop 1
node_start 1 --pool "small=$mounts/small"
check "a daemon starts with a full pool" node_alive 1
uri_small=$(lockstep attach s --node n1 --wait 30 2>/dev/null)
check "and serves what is in it" same_data "$uri_small"
rm "$mounts/small/filler"
lockstep detach s >/dev/null
check "it can be deleted" lockstep volume delete s
check "which frees its room" until_true 10 roomy "$mounts/small"
uri=$(lockstep attach v --node n1 2>/dev/null)
check "all else is well" same_data "$uri"
finish
