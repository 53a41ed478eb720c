# Clusters on this machine for end-to-end tests. Meant to be sourced by a script beside it:
#
#     . "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#     need fio nbdcopy                 # or the test is skipped
#     cluster_up 3                     # nodes n1, n2, n3; the last one owns the record store
#     lockstep volume create v --size 64MiB
#     uri=$(lockstep attach v --node n1)
#     node_kill 1                      # kill -9, as a crash would
#     node_start 1
#     check "what must hold" command with arguments
#     finish                           # exit status: 0 passed, 1 something failed
#
# Each node listens on a loopback address of its own, so no ports need to be found. Everything lives
# in one temporary directory; whatever happens, the daemons are stopped and the directory is removed
# when the script ends. KEEP=1 keeps the directory.
#
# Environment: LOCKSTEP_BIN_DIR holds lockstepd and lockstep (default: target/release).
# shellcheck shell=bash

set -uo pipefail
export PATH=$PATH:/usr/sbin:/sbin

E2E_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BIN_DIR=${LOCKSTEP_BIN_DIR:-$E2E_DIR/../../target/release}
# No setting of whoever runs the tests may reach the daemons.
for name in "${!LOCKSTEP_@}"; do unset "$name"; done

CLUSTER_DIR=            # everything of the cluster
CLUSTER_NODES=0         # how many nodes
CLUSTER_UUID=           # their cluster
CLUSTER_FLAGS=()        # flags that every daemon gets, beyond those needed
declare -A NODE_PID=()  # by number; unset while the daemon does not run
FAILURES=0
ON_CLEANUP=()           # commands to run before the daemons are stopped

# Ends the test as skipped; the reason is its last line.
skip() { echo "skipped: $*"; exit 77; }

# Skips the test unless all these programs are installed.
need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || skip "$tool is not installed"
    done
}

# Ends the test as failed, with the ends of the daemons' logs.
die() {
    echo "FAIL $*"
    node_logs
    exit 1
}

pass() { echo "PASS $*"; }
fail() { echo "FAIL $*"; FAILURES=$((FAILURES + 1)); }

# check WHAT COMMAND…: passes if the command succeeds.
check() {
    local what=$1 output
    shift
    if output=$("$@" 2>&1); then
        pass "$what"
    else
        fail "$what: \`$*\` ended with $?: $(tail -n 5 <<<"$output")"
    fi
}

# check_status STATUS WHAT COMMAND…: passes if the command ends with this status.
check_status() {
    local wanted=$1 what=$2 output status
    shift 2
    output=$("$@" 2>&1)
    status=$?
    if [ $status -eq "$wanted" ]; then
        pass "$what"
    else
        fail "$what: \`$*\` ended with $status, wanted $wanted: $(tail -n 5 <<<"$output")"
    fi
}

# check_refused STATUS WORDS COMMAND…: passes if the command ends with this status and says so.
check_refused() {
    local wanted=$1 words=$2 output status
    shift 2
    output=$("$@" 2>&1)
    status=$?
    if [ $status -eq "$wanted" ] && grep -qF -- "$words" <<<"$output"; then
        pass "refused: $(cut -c 1-80 <<<"$*"): $words"
    else
        fail "\`$(cut -c 1-80 <<<"$*")\` ended with $status, not $wanted, or did not say" \
            "\`$words\`: $(head -c 500 <<<"$output")"
    fi
}

# says WORDS COMMAND…: the command succeeds and says these words.
says() {
    local words=$1 output
    shift
    output=$("$@" 2>&1) && grep -qF -- "$words" <<<"$output"
}

# refused WORDS COMMAND…: the command fails and says these words.
refused() {
    local words=$1 output
    shift
    output=$("$@" 2>&1) && return 1
    grep -qF -- "$words" <<<"$output"
}

# until_true SECONDS COMMAND…: polls; fails if it did not succeed in time.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# Ends the test with what it found.
finish() {
    if [ $FAILURES -gt 0 ]; then
        node_logs
        echo "$FAILURES failed"
        exit 1
    fi
    echo "all passed"
    exit 0
}

# --- nodes -------------------------------------------------------------------------------------

# node_ip I: loopback address of node I. Derived from the process, so tests can run side by side.
node_ip() { echo "127.$((16 + $$ % 200)).$(($$ / 200 % 250)).$1"; }
node_dir() { echo "$CLUSTER_DIR/n$1"; }
node_pool() { echo "$CLUSTER_DIR/n$1/pool"; }
node_log() { echo "$CLUSTER_DIR/n$1/log"; }
node_pid() { echo "${NODE_PID[$1]:-}"; }
node_server() { echo "unix://$CLUSTER_DIR/n$1/sock"; }
node_peer_address() { echo "$(node_ip "$1"):7170"; }
node_admin_address() { echo "$(node_ip "$1"):7171"; }
node_nbd_address() { echo "$(node_ip "$1"):10809"; }

# node_flags I: the flags of node I's daemon, one on each line.
node_flags() {
    local i=$1 dir meta
    dir=$(node_dir "$i")
    meta=http://$(node_admin_address "$CLUSTER_NODES")
    [ "$i" -ne "$CLUSTER_NODES" ] || meta=embedded:$dir/meta.redb
    printf '%s\n' \
        --node "n$i" \
        --cluster "$CLUSTER_UUID" \
        --peer-listen "$(node_peer_address "$i")" \
        --admin-listen "$(node_admin_address "$i")" \
        --nbd-listen "$(node_nbd_address "$i")" \
        --socket "$dir/sock" \
        --nbd-dir "$dir/nbd" \
        --pool "default=$(node_pool "$i")" \
        --meta "$meta" \
        --ready-file "$dir/ready" \
        --run-dir "$dir/run" \
        --device-dir "$dir/dev" \
        --log-level "${E2E_LOG_LEVEL:-info}"
}

# node_launch I [FLAG…]: starts node I's daemon and does not wait for it. Flags given here come
# after those of the cluster.
node_launch() {
    local i=$1 dir flags
    shift
    dir=$(node_dir "$i")
    mkdir -p "$dir/nbd" "$(node_pool "$i")"
    rm -f "$dir/ready"
    mapfile -t flags < <(node_flags "$i")
    "$BIN_DIR/lockstepd" "${flags[@]}" ${CLUSTER_FLAGS[@]+"${CLUSTER_FLAGS[@]}"} "$@" \
        >>"$dir/log" 2>&1 </dev/null &
    NODE_PID[$i]=$!
    disown $!
}

# node_ready I [SECONDS]: waits until node I's daemon says that it is ready.
node_ready() {
    local i=$1 deadline=$((SECONDS + ${2:-20}))
    until [ -e "$(node_dir "$i")/ready" ]; do
        node_alive "$i" || return 1
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.05
    done
}

# node_start I [FLAG…]: starts node I's daemon and waits for it.
node_start() {
    node_launch "$@"
    node_ready "$1" || die "the daemon of n$1 did not become ready"
}

node_alive() { [ -n "${NODE_PID[$1]:-}" ] && process_alive "${NODE_PID[$1]}"; }

# A zombie is not alive: its files are closed, it only waits to be collected. Unless another of its
# threads is not done yet: until then it has all its files, and ports.
process_alive() {
    local line threads
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    line=${line##*) }
    case ${line%% *} in
        Z) threads=("/proc/$1/task/"*); [ ${#threads[@]} -gt 1 ] ;;
        '' | X) return 1 ;;
    esac
}

# The processes that keep connections of devices for the daemons of this cluster.
keepers() {
    local file words
    for file in /proc/[0-9]*/cmdline; do
        # No program is started for each: an emulated machine takes seconds for that.
        { mapfile -d '' -t words <"$file"; } 2>/dev/null || continue
        [[ " ${words[*]}" != *" keeper --run-dir $CLUSTER_DIR/"* ]] ||
            basename "${file%/cmdline}"
    done
}

# node_kill I: kill -9, as a crash of the node's daemon would be. Returns when it is gone.
node_kill() { node_signal "$1" KILL; }

# node_stop I: asks node I's daemon to stop and waits for it.
node_stop() { node_signal "$1" TERM; }

# node_signal I SIGNAL: sends a signal that ends the daemon, and waits for its end.
node_signal() {
    local i=$1 pid=${NODE_PID[$1]:-}
    [ -n "$pid" ] || return 0
    kill -"$2" "$pid" 2>/dev/null
    # A daemon that was paused ends only when it runs again.
    kill -CONT "$pid" 2>/dev/null
    if ! until_true 20 not process_alive "$pid"; then
        fail "the daemon of n$i did not end within 20 s of SIG$2"
        kill -KILL "$pid" 2>/dev/null
    fi
    unset "NODE_PID[$i]"
}

# node_pause I, node_resume I: as a machine that hangs.
node_pause() { kill -STOP "${NODE_PID[$1]}"; }
node_resume() { kill -CONT "${NODE_PID[$1]}"; }

not() { ! "$@"; }

# Shows the ends of all daemons' logs.
node_logs() {
    local i
    for ((i = 1; i <= CLUSTER_NODES; i++)); do
        echo "--- end of the log of n$i:"
        tail -n "${E2E_LOG_LINES:-25}" "$(node_log "$i")" 2>/dev/null
    done
}

# --- the cluster -------------------------------------------------------------------------------

# cluster_up N [FLAG…]: starts N nodes; every daemon gets the flags, also when started again.
cluster_up() {
    local i
    [ -x "$BIN_DIR/lockstepd" ] || die "no lockstepd in $BIN_DIR; build it or set LOCKSTEP_BIN_DIR"
    CLUSTER_NODES=$1
    shift
    CLUSTER_FLAGS=("$@")
    CLUSTER_DIR=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-e2e.XXXXXX") || exit 1
    CLUSTER_UUID=$(cat /proc/sys/kernel/random/uuid)
    for ((i = CLUSTER_NODES; i >= 1; i--)); do node_launch "$i"; done
    for ((i = CLUSTER_NODES; i >= 1; i--)); do
        node_ready "$i" || die "the daemon of n$i did not become ready"
    done
}

# lockstep ARGUMENT…: the command, asking the last node, which owns the record store.
lockstep() { lockstep_on "$CLUSTER_NODES" "$@"; }

# lockstep_on I ARGUMENT…: the command, asking node I.
lockstep_on() {
    local i=$1
    shift
    "$BIN_DIR/lockstep" --server "$(node_server "$i")" "$@"
}

# Whether a file system of this type can grow here: ext4 asks for CAP_SYS_RESOURCE.
can_grow() {
    local may
    may=$(sed -n 's/^CapEff:\t//p' /proc/self/status)
    [ "$1" = xfs ] || ((0x$may & 1 << 24))
}

# pools_on_xfs SIZE: all pools are on an XFS of their own, which can share blocks between files.
# Before cluster_up; as root. Skips the test where nobody may mount that.
pools_on_xfs() {
    local why
    need mkfs.xfs
    POOLS=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-pools.XXXXXX") || exit 1
    ON_CLEANUP+=(pools_away)
    truncate -s "$1" "$POOLS/xfs.img" && mkdir "$POOLS/xfs" || die "no image"
    mkfs.xfs -q -K "$POOLS/xfs.img" || die "no file system"
    why=$(mount -o loop,discard "$POOLS/xfs.img" "$POOLS/xfs" 2>&1) || skip "no loop mount here: $why"
    node_pool() { echo "$POOLS/xfs/n$1"; }
}
pools_away() {
    local i
    # Who closes the last file of an image with many holes would be busy with that for long.
    for i in "${!NODE_PID[@]}"; do node_stop "$i"; done
    umount -l "$POOLS/xfs" 2>/dev/null
    rm -f "$POOLS/xfs.img"
    rmdir "$POOLS/xfs" "$POOLS" 2>/dev/null
}

# --- volumes -----------------------------------------------------------------------------------

# fill VOLUME NODE MIB: attaches the volume on the node, and writes so much random data to its
# beginning. Leaves the file with the data as `input`, the address of the volume as `uri`.
fill() {
    input=$CLUSTER_DIR/input
    head -c $(($3 << 20)) /dev/urandom >"$input"
    uri=$(lockstep attach "$1" --node "$2" 2>/dev/null) || die "not attached"
    nbdcopy --flush "$input" "$uri" || die "not written"
}

# same_data URI [FILE]: the volume begins with what is in the file, by default with the input.
same_data() {
    local file=${2:-$input}
    nbdcopy "$1" "$CLUSTER_DIR/read" &&
        cmp -n "$(stat -c %s "$file")" "$CLUSTER_DIR/read" "$file"
}

# show VOLUME: all about it, as JSON.
show() { lockstep --json volume show "$1"; }

healthy() { says '"health":"healthy"' show "$1"; }

# holds VOLUME NODE: whether the record names a copy on the node.
holds() { show "$1" | grep -q "\"node\":\"$2\",\"pool\""; }

# copies VOLUME N: whether the record names N copies.
copies() { [ "$(show "$1" | grep -o '"node":"n[0-9]","pool"' | wc -l)" -eq "$2" ]; }

# acked_writes VOLUME: how many writes its primary has acknowledged.
acked_writes() { show "$1" | sed -n 's/.*"acked_writes": *\([0-9]*\).*/\1/p'; }

# replica_data VOLUME I: path of the data file that node I holds of a volume.
replica_data() {
    local uid
    uid=$(show "$1" | sed -n 's/.*"uid": *"\([^"]*\)".*/\1/p' | head -n 1)
    [ -n "$uid" ] && echo "$(node_pool "$2")/replicas/$uid/data"
}

# in_sync VOLUME N: whether the volume has N copies in sync.
in_sync() {
    [ "$(show "$1" | grep -o '"in_sync"' | wc -l)" -eq "$2" ]
}

cleanup() {
    local status=$? pid i command
    trap - EXIT INT TERM HUP
    for command in ${ON_CLEANUP[@]+"${ON_CLEANUP[@]}"}; do eval "$command"; done
    for pid in ${NODE_PID[@]+"${NODE_PID[@]}"}; do
        kill -TERM "$pid" 2>/dev/null
        kill -CONT "$pid" 2>/dev/null
    done
    for pid in ${NODE_PID[@]+"${NODE_PID[@]}"}; do
        until_true 15 not process_alive "$pid" && continue
        echo "FAIL the daemon with process id $pid did not end within 15 s of SIGTERM"
        kill -KILL "$pid" 2>/dev/null
        [ $status -ne 0 ] || status=1
    done
    if [ -n "$CLUSTER_DIR" ]; then
        # Told to end, they end all devices that are left.
        for pid in $(keepers); do
            kill -TERM "$pid" 2>/dev/null
            until_true 10 not process_alive "$pid" || echo "a keeper does not end: $pid"
        done
        if [ -n "${KEEP:-}" ]; then
            echo "kept: $CLUSTER_DIR"
        else
            rm -rf "$CLUSTER_DIR"
        fi
    fi
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
