#!/usr/bin/env bash
# A file system is copied onto a volume; in mid-copy the daemon that serves it is killed. Attached
# elsewhere and copied again, it must be identical and clean, on every copy.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy qemu-img mke2fs e2fsck cmp

readonly SIZE_MIB=192
cluster_up 3
tree=$CLUSTER_DIR/tree image=$CLUSTER_DIR/image back=$CLUSTER_DIR/back

echo "-- an ext4 image of a directory"
mkdir "$tree"
cp -r "$E2E_DIR/.." "$tree/tests" 2>/dev/null
head -c $((32 << 20)) "$BIN_DIR/lockstep" >"$tree/program"
head -c $((64 << 20)) /dev/urandom >"$tree/random"
for ((n = 0; n < 200; n++)); do head -c $((n * 997)) "$tree/random" >"$tree/file-$n"; done
mke2fs -q -t ext4 -d "$tree" "$image" ${SIZE_MIB}M || die "mke2fs made no image"

check "a volume is made" lockstep volume create v --size ${SIZE_MIB}MiB --repl 3
uri=$(lockstep attach v --node n1) || die "the volume was not attached on n1"

has_written() { [ "$(acked_writes v)" -ge "$1" ]; }

echo "-- kill -9 in mid-copy"
# One small request at a time, so that the copy takes long enough to be met in its midst.
nbdcopy --connections=1 --requests=1 --request-size=16384 "$image" "$uri" 2>"$CLUSTER_DIR/copy" &
copy=$!
disown $copy
until_true 60 has_written 100 || die "the copy does not begin"
check "the copy is under way" process_alive $copy
node_kill 1
if until_true 20 not process_alive $copy; then
    pass "the copy ended with its server: $(tail -n 1 "$CLUSTER_DIR/copy")"
else
    fail "the copy hangs though its server is dead"
    kill -KILL $copy
fi
[ -s "$CLUSTER_DIR/copy" ] || fail "the copy was finished before the kill; it proves nothing"

echo "-- taken over by n2"
begin=$SECONDS
uri=$(lockstep attach v --node n2 --wait 30) || die "n2 did not take the volume over"
echo "attached on n2 within $((SECONDS - begin)) s"
check "the copy is done again" nbdcopy --flush "$image" "$uri"
check "the volume is identical to the image" qemu-img compare -f raw -F raw "$image" "$uri"
check "the volume is read back" nbdcopy "$uri" "$back"
check "the file system on it is clean" e2fsck -fn "$back"

echo "-- n1 returns"
node_start 1
check "all three copies get in sync" until_true 60 in_sync v 3
check "the volume is detached" lockstep detach v
for i in 1 2 3; do
    check "the copy on n$i is identical to the image" cmp "$(replica_data v $i)" "$image"
done
finish
