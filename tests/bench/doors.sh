#!/usr/bin/env bash
# What each door costs: 4 KiB random reads and writes, one and 32 at a time, on memory behind each
# door that this kernel has, against the bare NBD door (without a kernel's device), and against
# what is there without us: loop devices over a file in memory and over one on a disk, with direct
# I/O, and the kernel's null_blk, if it is loaded. Beside them the doors with nothing behind them
# ("null"): what the door alone takes. Rounds go over all of them in turn, so that whatever else
# the machine does meets all. Told are medians, then the best rounds, which on a machine that does
# other things say more of the doors; with two ratios each: to the bare NBD door, and to LOCAL.
#
#   cargo build --release -p lockstep-attach --examples
#   tests/bench/doors.sh [--quick]                            # here, as root
#   tests/vm/boot --kernel 6.12 --cpus 2 --modules "ublk_drv nbd loop null_blk" --limit 900 \
#       --with target/release/examples/device-memory --with target/release/examples/nbd-memory \
#       tests/bench/doors.sh                                  # in a virtual machine
#
# ROUNDS (5), SECONDS_EACH (2), SIZE_MIB (256), BIN (where the two examples are), DISK_DIR (where
# the file on a disk is made; /var/tmp), LOCAL ("ublk, null" where there is ublk, else "loop,
# memory").
set -uo pipefail
rounds=${ROUNDS:-5} each=${SECONDS_EACH:-2}
readonly mib=${SIZE_MIB:-256}
case ${1:-} in
    '') ;;
    --quick) rounds=1 each=1 ;;
    *) echo "usage: tests/bench/doors.sh [--quick]" >&2; exit 2 ;;
esac
bin=${BIN:-${CARGO_TARGET_DIR:-target}/release/examples}
[ -x "$bin/device-memory" ] || bin=/bin
skip() { echo "SKIPPED doors: $*"; exit 77; }
[ "$(id -u)" -eq 0 ] || skip "needs root"
for program in fio losetup "$bin/device-memory" "$bin/nbd-memory"; do
    command -v "$program" >/dev/null || skip "$program not installed"
done

dir=$(mktemp -d) memory=$(mktemp -d /dev/shm/doors.XXXXXX) || exit 1
disk=${DISK_DIR:-/var/tmp}
case $(findmnt --noheadings --output FSTYPE --target "$disk" 2>/dev/null) in
    '' | tmpfs | ramfs | rootfs) disk= ;;
    *) disk=$(mktemp -d "$disk/doors.XXXXXX") || exit 1 ;;
esac
declare -a pids=() names=() loops=()
declare -A target=()
cleanup() {
    # SIGTERM: each removes its device.
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
    for loop in ${loops[@]+"${loops[@]}"}; do losetup --detach "$loop"; done
    rm -rf "$dir" "$memory" ${disk:+"$disk"}
}
trap cleanup EXIT
until_true() {
    local left=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $left ] || return 1
        sleep 0.05
    done
}
add() { names+=("$1"); target[$1]=$2; }

"$bin/nbd-memory" "$dir/nbd.sock" "$mib" </dev/null &
pids+=($!)
until_true 10 [ -S "$dir/nbd.sock" ] || { echo "no bare NBD door"; exit 1; }
add "NBD, bare" "--ioengine=nbd --uri=nbd+unix:///disk?socket=$dir/nbd.sock"
declare -A words=([ublk]="ublk" [nbd]="kernel NBD" [fuse]="FUSE and loop")
# with_door DOOR SUFFIX [OPTION]: a device of ours, if this kernel has the door.
with_door() {
    local door=$1 at=$dir/$1${3:-} pid
    "$bin/device-memory" --door "$door" --name "doors-$door${3:-}" --size $((mib << 20)) \
        --run-dir "$at.run" ${3:+"$3"} </dev/null >"$at" 2>"$at.err" &
    pid=$!
    started() { [ -s "$at" ] || ! kill -0 $pid 2>/dev/null; }
    if until_true 20 started && [ -s "$at" ]; then
        pids+=("$pid")
        add "${words[$door]}$2" "--ioengine=io_uring --direct=1 --filename=$(head -n 1 "$at")"
    else
        echo "left out: $(cat "$at.err")"
    fi
}
# with_loop NAME FILE
with_loop() {
    local loop direct=on
    truncate -s "${mib}M" "$2"
    # Before Linux 6.6 a file in memory takes no direct I/O.
    loop=$(losetup --find --show --direct-io=on --sector-size 4096 "$2" 2>/dev/null) ||
        loop=$(losetup --find --show --sector-size 4096 "$2") || exit 1
    loops+=("$loop")
    [ "$(cat "/sys/block/${loop#/dev/}/loop/dio")" = 1 ] || direct=off
    [ $direct = on ] || echo "$1: its file takes no direct I/O, so it is in the page cache"
    add "$1" "--ioengine=io_uring --direct=1 --filename=$loop"
}
for door in ublk nbd fuse; do with_door $door ""; done
for door in ublk nbd fuse; do with_door $door ", null" --null; done
with_loop "loop, memory" "$memory/file"
[ -z "$disk" ] || with_loop "loop, disk" "$disk/file"
[ ! -b /dev/nullb0 ] || add "null_blk" "--ioengine=io_uring --direct=1 --filename=/dev/nullb0"
near="loop, memory"
[ -z "${target["ublk, null"]:-}" ] || near="ublk, null"
near=${LOCAL:-$near}
[ -n "${target[$near]:-}" ] || { echo "LOCAL: no '$near' here"; exit 1; }

# run NAME RW DEPTH: operations a second.
run() {
    # shellcheck disable=SC2086 # the words are options
    fio --name=doors ${target[$1]} --rw="$2" --bs=4k --iodepth="$3" --size="${mib}m" \
        --time_based --runtime="$each" --randrepeat=0 --norandommap --minimal 2>"$dir/fio.err" |
        awk -F';' -v w="$2" '/^3;/ { print int(w == "randread" ? $8 : $49); ok = 1 }
            END { exit !ok }' || { echo "fio failed on $1:" >&2; cat "$dir/fio.err" >&2; exit 1; }
}
for name in "${names[@]}"; do
    # shellcheck disable=SC2086
    fio --name=fill ${target[$name]} --rw=write --bs=1m --size="${mib}m" --output="$dir/fill" --eta=never ||
        { cat "$dir/fill"; exit 1; }
done
cells=("randread 1" "randwrite 1" "randread 32" "randwrite 32")
for ((round = 0; round < rounds; round++)); do
    for cell in "${cells[@]}"; do
        for name in "${names[@]}"; do
            # shellcheck disable=SC2086
            result=$(run "$name" $cell) || exit 1
            echo "$name;$cell;$result" >>"$dir/results"
        done
    done
done

echo "Linux $(uname -r), $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg)," \
    "$rounds rounds of $each s, operations a second (ratio to the bare NBD door; to \"$near\")"
# table median|best
table() {
    awk -F';' -v what="$1" -v near="$near" -v names="$(printf '%s;' "${names[@]}")" \
        -v cells="$(printf '%s;' "${cells[@]}")" '
        { n = ++count[$1, $2]; value[$1, $2, n] = $3 }
        function figure(name, cell,    n, i, j, t, v) {
            n = count[name, cell]
            for (i = 1; i <= n; i++) v[i] = value[name, cell, i]
            for (i = 2; i <= n; i++)
                for (j = i; j > 1 && v[j] < v[j - 1]; j--) {
                    t = v[j]; v[j] = v[j - 1]; v[j - 1] = t
                }
            return what == "best" ? v[n] : v[int((n + 1) / 2)]
        }
        END {
            n = split(names, name, ";") - 1
            m = split(cells, cell, ";") - 1
            line = "| |"; rule = "|---|"
            for (j = 1; j <= m; j++) { line = line " " cell[j] " |"; rule = rule "---|" }
            print line; print rule
            for (i = 1; i <= n; i++) {
                line = "| " name[i] " |"
                for (j = 1; j <= m; j++) {
                    v = figure(name[i], cell[j]); base = figure(name[1], cell[j])
                    beside = figure(near, cell[j])
                    line = line sprintf(" %d (%.2f; %.2f) |", v, base ? v / base : 0,
                        beside ? v / beside : 0)
                }
                print line
            }
        }' "$dir/results"
}
for what in median best; do
    echo "$what:"
    table "$what"
done
