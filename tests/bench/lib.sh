# What the benchmarks share. Meant to be sourced by a script beside it, inside the namespace that
# `run` makes. Builds on tests/e2e/lib.sh.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../e2e/lib.sh"
need fio awk
fio --enghelp 2>/dev/null | grep -qw nbd || skip "this fio has no engine nbd"
JSON=no
[ "${1:-}" != --json ] || JSON=yes

# Bytes that went over the network of this namespace so far, with all headers.
wire() { sed -n "s/^ *lo: *\([0-9]*\) .*/\1/p" /proc/self/net/dev; }

# number KEY: the first number under this key in what `volume show` tells of v.
number() { lockstep --json volume show v | grep -o "\"$1\": *[0-9]*" | head -n 1 | grep -o '[0-9]*$'; }
# numbers KEY: all of them, one on each line.
numbers() { lockstep --json volume show v | grep -o "\"$1\": *[0-9]*" | grep -o '[0-9]*$'; }

# sum: of the numbers on standard input, one on each line.
sum() { paste -sd+ | awk -F+ '{ s = 0; for (i = 1; i <= NF; i++) s += $i; print s }'; }

# ratio A B: A / B with three digits.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", b ? a / b : 0 }'; }

# pools_in_memory NAME: the copies of all nodes are in memory that only this namespace sees, or, if
# POOLS_IN names a directory, in that. Before cluster_up.
pools_in_memory() {
    POOLS=$(mktemp -d "${POOLS_IN:-${TMPDIR:-/tmp}}/lockstep-$1.XXXXXX") || exit 1
    ON_CLEANUP+=(memory_away)
    [ -n "${POOLS_IN:-}" ] || mount -t tmpfs -o mode=700 "lockstep-$1" "$POOLS" ||
        skip "no memory can be mounted here"
    node_pool() { echo "$POOLS/n$1"; }
}
memory_away() {
    local i
    for i in "${!NODE_PID[@]}"; do node_stop "$i"; done
    [ -n "${POOLS_IN:-}" ] || umount -l "$POOLS"
    rm -rf "$POOLS"
}

# job WORD…: what fio says, in its terse form. The words say what to do where, by which engine.
job() {
    fio --name=bench --randrepeat=0 --norandommap --minimal \
        --lat_percentiles=1 --clat_percentiles=0 "$@" 2>"$CLUSTER_DIR/fio.err" | grep '^3;' ||
        die "fio: $(cat "$CLUSTER_DIR/fio.err")" >&2
}

# used PID…: ticks of the processors, and context switches, of these processes so far.
used() {
    local pid files=()
    for pid in "$@"; do files+=("/proc/$pid/stat" "/proc/$pid/task"/*/status); done
    # A thread may end meanwhile.
    awk 'FILENAME ~ /stat$/ { sub(/.*\) /, ""); ticks += $12 + $13 }
        /ctxt_switches/ { switches += $2 }
        END { print ticks, switches }' "${files[@]}" 2>/dev/null
}

# median: of the numbers on standard input, one on each line.
median() {
    sort -n | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# machine: what the figures are of.
machine() { echo "Linux $(uname -r), $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg)"; }
