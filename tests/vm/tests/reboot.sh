#!/usr/bin/env bash
# a node shuts down while its volume waits for others that are gone: nothing holds it up
# takes: 28
# disk: 2G
# memory: 768
# limit: 200
. /tests/vm/lib.sh
pools_on /dev/vda
cluster_up 3

# node1 SIGNAL: to everything of node 1, as init does: daemon, keeper, and whoever uses the volume.
node1() {
    local pid
    for pid in $(node1_processes); do kill -"$1" "$pid"; done
}
node1_processes() {
    local pid
    for pid in $(pidof lockstepd); do
        [ "$pid" = "$(node_pid 2)" ] || [ "$pid" = "$(node_pid 3)" ] || echo "$pid"
    done
    process_alive $writer && echo $writer
}
node1_over() { [ -z "$(node1_processes)" ]; }

patience=10
for door in $(doors); do
    # With two copies needed for each write, and one of them gone, all writes wait.
    device_up v 320 "$door" 2
    mkfs.ext4 -q "$DEV" && mount "$DEV" /mnt || die "no file system"
    node_pause 2
    node_pause 3
    dd if=/dev/zero of=/mnt/x bs=64k count=64 conv=fsync 2>/tmp/dd &
    writer=$!
    disown $writer
    dirty() { grep -qE '^ *D' <(ps -o stat,args | grep '[d]d if'); }
    check "a writer waits" until_true 20 dirty

    echo "-- $door: the machine stops: TERM to all, KILL to all, umount, as init does"
    begin=$(now_ms)
    node1 TERM
    # No init waits for ever. The daemon itself tries for 10 s to close what it serves.
    until_true $patience node1_over
    patience=3
    node1 KILL
    check "the writer is gone" until_true 10 not process_alive $writer
    check "it can be unmounted" timeout 20 umount /mnt
    check "nobody is stuck" not asleep_for_ever
    took="${took:-} $door $(($(now_ms) - begin)) ms"
    node_resume 2
    node_resume 3
    unset 'NODE_PID[1]'
    node_start 1
    check "the volume is detached" lockstep detach v --force
    check "the volume is deleted" lockstep volume delete v
done
result "to the unmount:$took"
finish
