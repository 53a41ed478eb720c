#!/usr/bin/env bash
# What a 4 KiB random write costs each of three daemons, one at a time and 32: system calls, context
# switches and CPU time, by counters of the kernel (`perf stat`), which cost little. Then where that
# CPU time goes, sampled at depth 32 (`perf record`). n1 serves the volume.
#
# SECONDS_EACH (5), SIZE_MIB (256), POOLS_IN (a directory for the copies; else they are in memory),
# TOP (25: how many functions are told).
each=${SECONDS_EACH:-5} mib=${SIZE_MIB:-256}
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need perf

# The counters of the kernel are seen through a file system, which only this namespace gets.
events=/sys/kernel/tracing/events
[ -d $events/raw_syscalls ] || mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
[ -d $events/raw_syscalls ] || skip "this kernel does not count system calls"
calls=(io_uring_enter epoll_wait futex read write readv writev recvfrom recvmsg sendto sendmsg
    pread64 pwrite64 preadv pwritev fdatasync)

# count DEPTH: counts of each daemon while fio writes.
count() {
    local i name list=task-clock,context-switches,raw_syscalls:sys_enter counting=()
    for name in "${calls[@]}"; do list+=",syscalls:sys_enter_$name"; done
    for i in 1 2 3; do
        # It ends when the daemon does, or when it is interrupted.
        perf stat -x';' -o "$CLUSTER_DIR/count$i" -e "$list" -p "${NODE_PID[$i]}" &
        counting+=($!)
        until_true 20 counts $! || die "perf does not count: $(cat "$CLUSTER_DIR/count$i")"
    done
    job --ioengine=nbd --uri="$uri" --size="${mib}m" --rw=randwrite --bs=4k --iodepth="$1" --time_based \
        --runtime="$each" >"$CLUSTER_DIR/job"
    for i in "${counting[@]}"; do kill -INT "$i"; done
    wait "${counting[@]}"
    echo
    awk -F';' -v depth="$1" -f "$E2E_DIR/../bench/cost.awk" "$CLUSTER_DIR/job" \
        "$CLUSTER_DIR"/count[123]
}
# counts PID: whether that perf has its counters.
counts() { ls -l "/proc/$1/fd" 2>/dev/null | grep -q 'perf_event'; }

pools_in_memory cost
cluster_up 3
lockstep volume create v --size "${mib}MiB" --repl 3 >/dev/null || die "no volume"
uri=$(lockstep attach v --node n1 2>/dev/null) || die "the volume was not attached"
all_in_sync() { in_sync v 3; }
until_true 30 all_in_sync || die "the copies are not in sync"
# Nothing is measured of making room in a file.
job --ioengine=nbd --uri="$uri" --size="${mib}m" --rw=write --bs=1m --iodepth=4 >/dev/null || exit 1

echo "$(machine), $each s each"
for depth in 1 32; do count $depth; done

perf record -q -g -e cpu-clock -F 2000 -o "$CLUSTER_DIR/samples" \
    -p "$(IFS=,; echo "${NODE_PID[*]}")" >"$CLUSTER_DIR/record" 2>&1 &
recording=$!
until_true 20 counts $recording || die "perf does not record: $(cat "$CLUSTER_DIR/record")"
job --ioengine=nbd --uri="$uri" --size="${mib}m" --rw=randwrite --bs=4k --iodepth=32 --time_based \
    --runtime="$each" >/dev/null || exit 1
kill -INT $recording
wait $recording
report() {
    perf report -q -i "$CLUSTER_DIR/samples" --stdio --percentage absolute -g none "$@" \
        2>/dev/null | grep . | cut -c 1-100
}
part() { printf '\n%s, percent of the CPU time of all daemons at depth 32:\n' "$1"; }
part "Threads"
report --no-children --sort comm | awk '{ sub(/-[0-9]+$/, "-*", $2); sum[$2] += $1 }
    END { for (thread in sum) printf "%8.2f  %s\n", sum[thread], thread }' | sort -rn
part "Programs and the kernel"
report --no-children --sort dso | head -n 6
part "System calls, with all that the kernel does in them"
# A kernel may have inlined the outermost function of one.
report --children --sort sym |
    awk '$NF ~ /^(__(x64|arm64)_sys_|do_writev$)/ { printf "%8.2f  %s\n", $1, $NF }' | head -n 12
part "Functions"
report --no-children --sort dso,sym | head -n "${TOP:-25}"
finish
