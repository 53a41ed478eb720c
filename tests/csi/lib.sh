# CSI drivers beside a cluster of e2e/lib.sh. Meant to be sourced after cluster_up.
# shellcheck shell=bash

DRIVER_PIDS=()
DRIVER_SOCKET=$CLUSTER_DIR/csi.sock
DRIVER_LOG=$CLUSTER_DIR/driver.log

# driver_start [N]: starts a driver, controller and node nN (n1) on one socket: that of n1 is
# $DRIVER_SOCKET, the others are $DRIVER_SOCKET.N.
driver_start() {
    local n=${1:-1} socket=$DRIVER_SOCKET i daemons
    [ "$n" = 1 ] || socket+=.$n
    [ -x "$BIN_DIR/lockstep-csi" ] || die "no lockstep-csi in $BIN_DIR; build it"
    daemons=$(node_server "$n")
    for ((i = 1; i <= CLUSTER_NODES; i++)); do [ "$i" = "$n" ] || daemons+=,$(node_server "$i"); done
    "$BIN_DIR/lockstep-csi" --standalone --endpoint "unix://$socket" --node-id "n$n" \
        --daemon "$daemons" >>"$DRIVER_LOG" 2>&1 </dev/null &
    DRIVER_PIDS+=($!)
    disown $!
    until_true 10 test -S "$socket" || die "the driver does not begin: $(tail "$DRIVER_LOG")"
}

# Stops all drivers.
driver_stop() {
    local pid
    for pid in "${DRIVER_PIDS[@]}"; do
        kill -TERM "$pid" 2>/dev/null
        until_true 10 not process_alive "$pid" || kill -KILL "$pid"
    done
    DRIVER_PIDS=()
}

# What is mounted below the test's directory is unmounted, whatever happens.
unmount_all() {
    local dir
    while read -r dir; do
        umount -l "$dir"
    done < <(findmnt -rno TARGET | grep -E "^$CLUSTER_DIR/(sanity-|pods/)" | sort -r)
}
ON_CLEANUP+=(driver_stop unmount_all)

# Whether the cluster is as new: no mount, device, name, note, volume or copy.
nothing_left() {
    local i left=
    left+=$(findmnt -rno TARGET | grep "^$CLUSTER_DIR/")
    left+=$(losetup -a | grep "$CLUSTER_DIR/")
    for ((i = 1; i <= CLUSTER_NODES; i++)); do
        left+=$(ls "$(node_dir "$i")/run/devices" "$(node_dir "$i")/dev" 2>/dev/null | grep -v ':$')
        left+=$(ls "$(node_pool "$i")/replicas" "$(node_pool "$i")/snapshots" 2>/dev/null |
            grep -v ':$')
    done
    left+=$(lockstep --json volume list | grep -o '"name":"[^"]*"')
    echo "$left"
    [ -z "${left//[$'\n ']/}" ]
}

# check_nothing_left WHAT
check_nothing_left() {
    until_true 15 nothing_left
    check "$1: nothing is left behind" nothing_left
}
