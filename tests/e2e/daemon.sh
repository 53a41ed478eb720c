#!/usr/bin/env bash
# How a daemon starts and ends: what it tells whoever started it, that it waits for the record
# store, that it closes its volumes when asked to stop, and stops at once when asked twice.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp


cluster_up 3

echo "-- starting"
node_stop 1
check "it takes its ready file away" not test -e "$(node_dir 1)/ready"
check "and its socket" not test -e "$(node_dir 1)/sock"
node_kill 3
node_launch 1
check "without the record store it answers" until_true 10 lockstep_on 1 node show
check "that it is not ready" says "not ready" lockstep_on 1 node show
check "and does not say that it is" not test -e "$(node_dir 1)/ready"
node_start 3
check "once the record store is there it is ready" node_ready 1

mapfile -t flags < <(node_flags 1)
node_stop 1
mkfifo "$CLUSTER_DIR/told"
exec {told}<>"$CLUSTER_DIR/told"
"$BIN_DIR/lockstepd" "${flags[@]}" --ready-fd 9 --log-format json 9>&"$told" \
    >>"$(node_log 1)" 2>&1 </dev/null &
NODE_PID[1]=$!
disown $!
read -r -t 20 -u "$told" word
check "it tells by a descriptor as well" test "$word" = READY
check "its log can be JSON" grep -q '^{.*"message":"ready".*}$' "$(node_log 1)"
node_stop 1
node_start 1

echo "-- stopping"
input=$CLUSTER_DIR/input
head -c $((4 << 20)) /dev/urandom >"$input"
lockstep volume create v --size 16MiB >/dev/null || die "no volume"
uri=$(lockstep attach v --node n1 2>/dev/null) || die "not attached"
nbdcopy "$input" "$uri" || die "not written"
node_stop 1
check "the volume it served was closed" says '"clean":true' show v
uri=$(lockstep attach v --node n2 2>/dev/null) || die "not attached"
check "and lost nothing" same_data "$uri"
lockstep detach v >/dev/null
node_start 1
uri=$(lockstep attach v --node n1 2>/dev/null) || die "not attached"
# With both other copies silent it cannot close the volume: it gives up after 10 s.
node_pause 2
node_pause 3
pid=$(node_pid 1)
kill -TERM "$pid"
check "asked once, it tries" not until_true 2 not process_alive "$pid"
kill -TERM "$pid"
check "asked twice, it stops at once" until_true 2 not process_alive "$pid"
unset "NODE_PID[1]"
node_resume 2
node_resume 3
check "the volume can be attached elsewhere" lockstep attach v --node n2 --wait 20
finish
