#!/usr/bin/env bash
# May be skipped where nobody may mount.
# Snapshots of a file system in use. What is made from one mounts clean, has every line of a ledger
# that was durable when the snapshot was asked for, and only blocks as they were written once.
. "$(dirname "${BASH_SOURCE[0]}")/own_mounts.sh"
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need fio mkfs.ext4 e2fsck xfs_repair findmnt
[ "$(id -u)" -eq 0 ] || skip "needs root, to make devices and to mount"

pools_on_xfs 6G
cluster_up 3
doors=$(lockstep --json node show n1) || die "node show fails"
grep -q '"usable":true' <<<"$doors" || skip "no door to a block device on this kernel: $doors"
mnt=$CLUSTER_DIR/m1 clone=$CLUSTER_DIR/m2
unmount_all() {
    local dir
    while read -r dir; do umount -l "$dir"; done < <(findmnt -rno TARGET | grep "^$CLUSTER_DIR/m")
}
ON_CLEANUP+=(unmount_all)

blocks=(--name=blocks --size=48m --bs=4k --direct=1 --ioengine=libaio --iodepth=8 --fallocate=none
    --verify=crc32c --verify_fatal=1 --verify_state_save=0)
# Writes blocks that say where they belong, again and again.
load() {
    fio "${blocks[@]}" --filename="$mnt/blocks" --rw=randwrite --do_verify=0 --time_based \
        --runtime=600 >"$CLUSTER_DIR/load" 2>&1 &
    loader=$!
    disown $loader
    ON_CLEANUP+=("kill -KILL $loader 2>/dev/null")
}
# Adds numbered lines to a file. `acked` is the number of the last line that is durable there.
keep_ledger() {
    local n=0
    while [ ! -e "$CLUSTER_DIR/enough" ]; do
        n=$((n + 1))
        echo "$n" >>"$mnt/ledger" && sync "$mnt/ledger" || return 1
        echo "$n" >"$CLUSTER_DIR/acked.new" && mv "$CLUSTER_DIR/acked.new" "$CLUSTER_DIR/acked"
    done
}
acked() { cat "$CLUSTER_DIR/acked" 2>/dev/null || echo 0; }
has_acked() { [ "$(acked)" -ge "$1" ]; }
# ledger_reaches N: it has each line from 1 to N, in order. A last line may be there in part.
ledger_reaches() { cmp -n "$(seq "$1" | wc -c)" <(seq "$1") "$clone/ledger"; }
blocks_are_whole() { fio "${blocks[@]}" --filename="$clone/blocks" --rw=read; }
is_clean() {
    case $1 in
        ext4) e2fsck -fn "$2" ;;
        xfs) xfs_repair -n "$2" ;;
    esac
}

for fs in ext4 xfs; do
    echo "-- $fs"
    rm -f "$CLUSTER_DIR"/{acked,enough}
    lockstep volume create $fs --size 512MiB --repl 3 >/dev/null || die "no volume"
    lockstep attach $fs --node n1 --fs $fs --mount "$mnt" >/dev/null || die "not attached"
    fio "${blocks[@]}" --filename="$mnt/blocks" --rw=write --do_verify=0 >/dev/null || die "not written"
    sync "$mnt/blocks"
    load
    keep_ledger &
    ledger=$!
    reached=()
    for n in 1 2 3 4 5; do
        until_true 20 has_acked $((${reached[n - 1]:-0} + 30)) || die "the ledger does not grow"
        reached[n]=$(acked)
        check "snapshot $n is taken" lockstep snapshot create $fs "$fs$n"
        [ $n -ne 2 ] || check "one is deleted" lockstep snapshot delete "${fs}1"
    done
    touch "$CLUSTER_DIR/enough"
    wait $ledger || fail "the ledger could not be written"
    kill -INT $loader
    until_true 20 not process_alive $loader || fail "the load does not end"
    grep -q "err= 0" "$CLUSTER_DIR/load" || fail "the load: $(tail -n 3 "$CLUSTER_DIR/load")"
    for n in 2 5; do
        check "a volume is made from snapshot $n" lockstep volume create c$n --from-snapshot $fs$n
        check "it mounts" lockstep attach c$n --node n2 --mount "$clone"
        check "it has all ${reached[n]} lines that were durable then" ledger_reaches "${reached[n]}"
        check "its blocks are whole" blocks_are_whole
        lockstep detach c$n >/dev/null || fail "c$n is not detached"
        device=$(lockstep attach c$n --node n3 --device --ro) || fail "c$n has no device"
        check "its file system is clean" is_clean $fs "$device"
        lockstep detach c$n >/dev/null || fail "c$n is not detached"
        check "and its copies are alike" lockstep attach c$n --node n1
        check "as a scrub finds" lockstep volume scrub c$n --wait
        lockstep detach c$n >/dev/null
        lockstep volume delete c$n >/dev/null || fail "c$n is not deleted"
    done
    lockstep detach $fs >/dev/null || fail "$fs is not detached"
done
lockstep --json snapshot list | grep -o '"pause_us": *[0-9]*' | grep -o '[0-9]*$' | sort -n |
    awk '{ v[NR] = $1 } END {
        print "writes waited (us): p50 " v[int((NR + 1) / 2)] ", p99 and max " v[NR] ", of " NR }'
finish
