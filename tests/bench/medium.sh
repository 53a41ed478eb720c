#!/usr/bin/env bash
# Measures all systems of `compare` in one directory, in turn: three copies each, on loopback. Called
# by compare.sh, in namespaces that end with it.
#
#     medium.sh NAME DIR RESULTS       lines are appended to RESULTS, fields with ; between them:
#     NAME;system;cell;round;operations/s;p50 us;p99 us;CPU us/operation;switches/operation
#
# SYSTEMS (words), ROUNDS, SECONDS_EACH and SIZE_MIB come from compare.sh.
readonly medium=$1 base=$2 results=$3
set --
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/ceph.sh"

declare -A target_of=() pids_of=()  # by system: words for fio, its processes
declare -a started=()
ON_CLEANUP+=(stop_started)
stop_started() {
    local pid
    for pid in ${started[@]+"${started[@]}"}; do kill "$pid" 2>/dev/null; done
    for pid in ${started[@]+"${started[@]}"}; do wait "$pid" 2>/dev/null; done
}
# start SYSTEM LOG COMMAND…
start() {
    local system=$1 log=$2
    shift 2
    "$@" </dev/null >"$log" 2>"$log.err" &
    started+=($!)
    pids_of[$system]+=" $!"
}
# await WHAT LOG COMMAND…: until the command succeeds.
await() {
    local what=$1 log=$2
    shift 2
    until_true 60 "$@" || die "$what did not start: $(cat "$log.err")"
}

# The copies are on what is measured; sockets, logs and records, which no write waits for, are not.
node_pool() { echo "$base/n$1"; }
start_lockstep() {
    cluster_up 3
    lockstep volume create v --size "${SIZE_MIB}MiB" --repl 3 >/dev/null || die "no volume"
    uri=$(lockstep attach v --node n1 2>"$base/attach.err") || die "the volume was not attached"
    target_of[lockstep]="--ioengine=nbd --uri=$uri"
    all_in_sync() { in_sync v 3; }
    until_true 30 all_in_sync || die "the copies are not in sync"
    pids_of[lockstep]="${NODE_PID[*]}"
}
start_floor() {
    local i ports=()
    for i in 1 2 3; do
        start floor "$base/floor$i.port" "$BIN_DIR/lockstep-floor" copy "$base/floor$i" $((SIZE_MIB << 20))
    done
    for i in 1 2 3; do
        await "a copy of the floor" "$base/floor$i.port" [ -s "$base/floor$i.port" ]
        ports+=("$(cat "$base/floor$i.port")")
    done
    start_door floor "$base/floor1" "${ports[@]}"
}
start_single() { start_door single "$base/single"; }
# start_door SYSTEM FILE [PORT…]
start_door() {
    local system=$1 file=$2
    shift 2
    start "$system" "$base/$system.log" "$BIN_DIR/lockstep-floor" \
        door "$base/$system.sock" "$file" $((SIZE_MIB << 20)) "$@"
    await "the door of $system" "$base/$system.log" [ -S "$base/$system.sock" ]
    target_of[$system]="--ioengine=nbd --uri=nbd+unix:///disk?socket=$base/$system.sock"
}
# Reads take the first copy that answers, as with the others, instead of comparing all three. Before
# 8.1, qemu-nbd lets answers on TCP wait for each other (no TCP_NODELAY), which is not what is to be
# measured: then its copies listen on unix sockets, which cost less than TCP.
start_qemu() {
    local i listen server version quorum="driver=quorum,vote-threshold=2,read-pattern=fifo"
    version=$(qemu-nbd --version | sed -n '1s/^qemu-nbd \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
    [ "${version% *}" -gt 8 ] || [ "$version" = "8 1" ] || [ "$version" = "8 2" ] || {
        version=old
        echo "qemu: the copies are on unix sockets, for this qemu-nbd is slow on TCP"
    }
    for i in 0 1 2; do
        listen=(--bind=127.0.0.1 --port=$((11000 + i)))
        server=inet,children.$i.server.host=127.0.0.1,children.$i.server.port=$((11000 + i))
        if [ "$version" = old ]; then
            listen=(--socket="$base/qemu$i.sock")
            server=unix,children.$i.server.path=$base/qemu$i.sock
        fi
        truncate -s "${SIZE_MIB}M" "$base/qemu$i"
        start qemu "$base/qemu$i.log" qemu-nbd --persistent --shared=4 "${listen[@]}" \
            --pid-file="$base/qemu$i.pid" --export-name=disk --format=raw --cache=none \
            --aio=io_uring "$base/qemu$i"
        await "qemu-nbd" "$base/qemu$i.log" [ -s "$base/qemu$i.pid" ]
        quorum+=",children.$i.driver=nbd,children.$i.export=disk,children.$i.server.type=$server"
    done
    start qemu "$base/qemu.log" qemu-nbd --persistent --shared=4 --socket="$base/qemu.sock" \
        --pid-file="$base/qemu.pid" --export-name=disk --image-opts "$quorum"
    await "the quorum" "$base/qemu.log" [ -s "$base/qemu.pid" ]
    target_of[qemu]="--ioengine=nbd --uri=nbd+unix:///disk?socket=$base/qemu.sock"
}

# The words of fio for each cell.
cells=("write 1" "write 32" "flush 1" "read 1" "read 32" "stream 4")
words() {
    case ${1% *} in
        write) echo "--rw=randwrite --bs=4k" ;;
        flush) echo "--rw=randwrite --bs=4k --fsync=1" ;;
        read) echo "--rw=randread --bs=4k" ;;
        stream) echo "--rw=write --bs=1m" ;;
    esac
    echo "--iodepth=${1#* } --time_based --runtime=$SECONDS_EACH"
}

# on SYSTEM WORD…: fio on it.
on() {
    local system=$1
    shift
    # shellcheck disable=SC2086 # they are words
    job ${target_of[$system]} --size="${SIZE_MIB}m" "$@"
}

# measure SYSTEM CELL ROUND
measure() {
    local before after line
    # shellcheck disable=SC2086 # the ids are words
    before=$(used ${pids_of[$1]})
    # shellcheck disable=SC2046 # the words are options
    line=$(on "$1" $(words "$2")) || { echo "$line"; exit 1; }
    # shellcheck disable=SC2086
    after=$(used ${pids_of[$1]})
    echo "$line" | awk -F';' -v before="$before" -v after="$after" -v head="$medium;$1;$2;$3" \
        -v tick_us=$((1000000 / $(getconf CLK_TCK))) -v at="$([[ $2 = read* ]] && echo 0 || echo 41)" '{
            split(before, b, " "); split(after, a, " ")
            n = $(8 + at) * $(9 + at) / 1000
            if (n < 1) { print "no operations" >"/dev/stderr"; exit 1 }
            p50 = $(24 + at); sub(/.*=/, "", p50); p99 = $(30 + at); sub(/.*=/, "", p99)
            printf "%s;%.1f;%s;%s;%.2f;%.3f\n", head, n * 1000 / $(9 + at), p50, p99,
                (a[1] - b[1]) * tick_us / n, (a[2] - b[2]) / n
        }' >>"$results" || die "fio told nothing of $1: $line"
}

for system in $SYSTEMS; do
    "start_$system"
    # Nothing is measured of making room in a file.
    on "$system" --rw=write --bs=1m --iodepth=4 >/dev/null || exit 1
done
for ((round = 1; round <= ROUNDS; round++)); do
    for cell in "${cells[@]}"; do
        for system in $SYSTEMS; do measure "$system" "$cell" "$round"; done
    done
    echo "$medium: round $round of $ROUNDS is done" >&2
done
exit $((FAILURES > 0))
