#!/usr/bin/env bash
# May be skipped where nobody may mount.
# A device waits for its daemon, which is being replaced. It goes on if nobody else had its volume: who
# wants that for a moment only is refused. If another node had it, and let go of it in good order, what is
# mounted would go on over blocks that have changed: it fails instead.
. "$(dirname "${BASH_SOURCE[0]}")/own_mounts.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need mkfs.ext4 mountpoint findmnt
[ "$(id -u)" -eq 0 ] || skip "needs root, to make devices and to mount"

cluster_up 3
doors=$(lockstep --json node show n1) || die "node show fails"
grep -q '"usable":true' <<<"$doors" || skip "no door to a block device on this kernel: $doors"
unmount_all() {
    local dir
    while read -r dir; do umount -l "$dir"; done < <(findmnt -rno TARGET | grep "^$CLUSTER_DIR/m")
}
ON_CLEANUP+=(unmount_all)
mnt=$CLUSTER_DIR/m there=$CLUSTER_DIR/m-there
note() { ls "$CLUSTER_DIR/n1/run/devices"; }
write() { echo "$2" >"$1/file" && sync "$1/file"; }

check "a volume is made" lockstep volume create v --size 64MiB --repl 2 --node n2 --node n3
check "attached on n1" lockstep attach v --node n1 --fs ext4 --mount "$mnt"
check "written there" write "$mnt" one

echo "-- nobody else has it meanwhile"
node_stop 1
check "its device waits" test -n "$(note)"
check_refused 5 "whose daemon is being replaced" lockstep volume resize v --size 96MiB
node_start 1
check "it goes on" write "$mnt" two
check "and is what it was" grep -qx two "$mnt/file"
check "the volume can grow again" lockstep volume resize v --size 96MiB

echo "-- n2 has it in between"
exec 9>"$mnt/open"
node_stop 1
mkdir "$there"
check "attached on n2" lockstep attach v --node n2 --mount "$there"
check "written there" write "$there" three
check "detached" lockstep detach v
node_start 1
gone() { [ -z "$(note)" ] && ! mountpoint -q "$mnt"; }
check "its device on n1 is ended" until_true 20 gone
check "and says why" grep -q "node n2 had it in between" "$(node_log 1)"
check "what was open fails" not eval 'echo four >&9 && sync /dev/fd/9'
exec 9>&-
check "n1 has not claimed the volume" says "not attached" lockstep volume show v
rmdir "$mnt" 2>/dev/null
check "attached on n1 anew" lockstep attach v --node n1 --mount "$mnt"
check "it is what n2 wrote" grep -qx three "$mnt/file"
check "detached" lockstep detach v
finish
