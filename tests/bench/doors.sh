#!/usr/bin/env bash
# What each door costs: 4 KiB random reads and writes, one and 32 at a time, on memory behind each
# door that this kernel has, against the bare NBD door (without a kernel's device) and against a
# loop device over a file in memory. Rounds go over all of them in turn, so that whatever else the
# machine does meets all; medians are told, and ratios to the bare NBD door.
#
#   cargo build --release -p lockstep-attach --examples
#   tests/bench/doors.sh                                      # here, as root
#   tests/vm/boot --kernel 6.12 --cpus 2 --modules "ublk_drv nbd loop" --limit 900 \
#       --with target/release/examples/device-memory --with target/release/examples/nbd-memory \
#       tests/bench/doors.sh                                  # in a virtual machine
#
# ROUNDS (5), SECONDS_EACH (2), SIZE_MIB (256), BIN (where the two examples are).
set -uo pipefail
readonly rounds=${ROUNDS:-5} each=${SECONDS_EACH:-2} mib=${SIZE_MIB:-256}
bin=${BIN:-${CARGO_TARGET_DIR:-target}/release/examples}
[ -x "$bin/device-memory" ] || bin=/bin
skip() { echo "SKIPPED doors: $*"; exit 77; }
[ "$(id -u)" -eq 0 ] || skip "needs root"
for program in fio losetup "$bin/device-memory" "$bin/nbd-memory"; do
    command -v "$program" >/dev/null || skip "$program not installed"
done

dir=$(mktemp -d) memory=$(mktemp -d /dev/shm/doors.XXXXXX) || exit 1
declare -a pids=() names=()
declare -A target=()
loop=
cleanup() {
    # SIGTERM: each removes its device.
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
    [ -z "$loop" ] || losetup --detach "$loop"
    rm -rf "$dir" "$memory"
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
for door in ublk nbd fuse; do
    "$bin/device-memory" --door $door --name "doors-$door" --size $((mib << 20)) \
        --run-dir "$dir/run" </dev/null >"$dir/$door" 2>"$dir/$door.err" &
    pid=$!
    started() { [ -s "$dir/$door" ] || ! kill -0 $pid 2>/dev/null; }
    if until_true 20 started && [ -s "$dir/$door" ]; then
        pids+=("$pid")
        add "$door" "--ioengine=io_uring --direct=1 --filename=$(head -n 1 "$dir/$door")"
    else
        echo "left out: $(cat "$dir/$door.err")"
    fi
done
truncate -s "${mib}M" "$memory/file"
# Before Linux 6.6 a file in memory takes no direct I/O.
loop=$(losetup --find --show --direct-io=on --sector-size 4096 "$memory/file" 2>/dev/null) ||
    loop=$(losetup --find --show --sector-size 4096 "$memory/file") || exit 1
add "loop, local" "--ioengine=io_uring --direct=1 --filename=$loop"

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
    "medians of $rounds rounds of $each s, operations a second (ratio to the bare NBD door)"
awk -F';' -v names="$(printf '%s;' "${names[@]}")" -v cells="$(printf '%s;' "${cells[@]}")" '
    { n = ++count[$1, $2]; value[$1, $2, n] = $3 }
    function median(name, cell,    n, i, j, t, v) {
        n = count[name, cell]
        for (i = 1; i <= n; i++) v[i] = value[name, cell, i]
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && v[j] < v[j - 1]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
        return v[int((n + 1) / 2)]
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
                v = median(name[i], cell[j]); base = median(name[1], cell[j])
                line = line sprintf(" %d (%.2f) |", v, base ? v / base : 0)
            }
            print line
        }
    }' "$dir/results"
