# What the tests in guests share. Builds on tests/e2e/lib.sh.
# shellcheck shell=bash

. /tests/e2e/lib.sh

quick() { [ -n "${VM_QUICK:-}" ]; }

# in_time MS GOAL_MS: whether something took no longer than it should. An emulated processor, one of
# several on a busy machine, gets three times as long; what it took is told by `result` anyway.
in_time() { [ "$1" -le $(($2 * ${VM_PATIENCE:-1})) ]; }

# pools_on DEVICE: clusters of this test are on this disk: a tmpfs takes no direct I/O everywhere.
pools_on() {
    mkfs.ext4 -q "$1" && mkdir -p /pools && mount "$1" /pools || die "no disk for pools"
    export TMPDIR=/pools
}

# doors: those that node 1's daemon can use here, the best first.
doors() {
    lockstep_on 1 --json node show n1 | grep -o '"kind":"[a-z]*",[^}]*"usable":true' |
        sed 's/"kind":"\([a-z]*\)".*/\1/'
}

# device_up VOLUME SIZE_MIB DOOR COPIES: makes a volume and, on node 1, its device; DEV is its path.
device_up() {
    lockstep volume create "$1" --size "$2MiB" --repl "$4" >/dev/null || die "no volume $1"
    DEV=$(lockstep_on 1 attach "$1" --node n1 --device --door "$3" | grep '^/' | tail -n 1)
    [ -b "$DEV" ] || die "no device of $1 through $3"
}

# device_gone DEVICE: an NBD device stays for ever, empty.
device_gone() { [ ! -b "$1" ] || [ "$(blockdev --getsize64 "$1")" = 0 ]; }

# device_down VOLUME: undoes device_up.
device_down() {
    check "$1 is detached" lockstep_on 1 detach "$1"
    check "its device is gone" test ! -e "$DEV"
    check "$1 is deleted" lockstep volume delete "$1"
}

# fsck_clean FS DEVICE
fsck_clean() {
    case $1 in
        ext4) e2fsck -fn "$2" ;;
        xfs) xfs_repair -n "$2" ;;
    esac
}

# forget_pages: reads of files ask the device from now on.
forget_pages() { sync; echo 3 >/proc/sys/vm/drop_caches; }

# no_errors: whether neither the kernel nor a file system has told of an error.
no_errors() {
    ! dmesg | grep -iE 'I/O error|EXT4-fs.*(error|abort)|XFS.*(error|corrupt|shut)|remounting'
}

# now_ms: of the clock that lockstep-vm uses.
now_ms() { local now=${EPOCHREALTIME/[.,]/}; echo $((now / 1000)); }

# asleep_for_ever: processes that wait uninterruptibly, seen three times in a row.
asleep_for_ever() {
    local count=0
    while ps -o stat,pid,args | grep '^D' >/tmp/asleep; do
        count=$((count + 1))
        [ $count -lt 30 ] || { cat /tmp/asleep; return 0; }
        sleep 0.1
    done
    return 1
}

# result TEXT: figures for the table of `run`.
result() { echo "RESULT $*"; }

# serve DOOR [ARGUMENT…]: a volume in a file through a device; DEV is the device, SERVER who serves.
# SIZE are its bytes.
serve() {
    local door=$1
    shift
    exec 9>&-
    rm -f /tmp/orders
    mkfifo /tmp/orders
    : >/tmp/answers
    device-memory --door "$door" --size "${SIZE:-$((64 << 20))}" --file /tmp/content \
        --token /tmp/token "$@" </tmp/orders >/tmp/answers &
    SERVER=$!
    disown $SERVER
    exec 9>/tmp/orders
    until_true 20 test -s /tmp/answers || die "no device through $door"
    DEV=$(head -n 1 /tmp/answers)
}

# order WORD…: has the server do something, and waits until it says so.
order() {
    local before
    before=$(wc -l </tmp/answers)
    echo "$*" >&9
    until_true 20 eval "[ \$(wc -l </tmp/answers) -gt $before ]"
}
