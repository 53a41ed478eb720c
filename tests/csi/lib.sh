# The CSI driver beside a cluster of e2e/lib.sh. Meant to be sourced after cluster_up.
# shellcheck shell=bash

DRIVER_PID=
DRIVER_SOCKET=$CLUSTER_DIR/csi.sock
DRIVER_LOG=$CLUSTER_DIR/driver.log

# Starts the driver: controller and node n1 on one socket.
driver_start() {
    local i daemons=
    [ -x "$BIN_DIR/lockstep-csi" ] || die "no lockstep-csi in $BIN_DIR; build it"
    for ((i = 1; i <= CLUSTER_NODES; i++)); do daemons+=,$(node_server "$i"); done
    "$BIN_DIR/lockstep-csi" --standalone --endpoint "unix://$DRIVER_SOCKET" --node-id n1 \
        --daemon "${daemons#,}" >>"$DRIVER_LOG" 2>&1 </dev/null &
    DRIVER_PID=$!
    disown $DRIVER_PID
    until_true 10 test -S "$DRIVER_SOCKET" || die "the driver does not begin: $(tail "$DRIVER_LOG")"
}

driver_stop() {
    [ -n "$DRIVER_PID" ] || return 0
    kill -TERM "$DRIVER_PID" 2>/dev/null
    until_true 10 not process_alive "$DRIVER_PID" || kill -KILL "$DRIVER_PID"
    DRIVER_PID=
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
