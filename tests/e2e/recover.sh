#!/usr/bin/env bash
# Both copies with all data are lost for good. The volume can't be attached, and says what can be
# done; nothing is given up before somebody says so; then it goes on from the copy that is left,
# with the data that one has, and gets its copies back.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

mentions() { # mentions WORDS COMMAND…: these words are said, whether or not the command succeeds.
    local words=$1 output
    shift
    output=$("$@" 2>&1)
    grep -qF -- "$words" <<<"$output"
}
left_out() { show v | grep -q '"node":"n3".*"state":"out"'; }

cluster_up 4 --rebuild-after-ms 600000
for name in old new; do head -c $((4 << 20)) /dev/urandom >"$CLUSTER_DIR/$name"; done
lockstep_on 4 volume create v --size 64MiB --repl 3 --min-in-sync 1 \
    --node n1 --node n2 --node n3 >/dev/null || die "no volume"
uri=$(lockstep_on 4 attach v --node n1 2>/dev/null) || die "not attached"
nbdcopy --flush "$CLUSTER_DIR/old" "$uri" || die "not written"
node_kill 3
nbdcopy --flush "$CLUSTER_DIR/new" "$uri" || die "not written with two copies"
check "the copy on n3 is left out" until_true 20 left_out
check_status 4 "no recovery while copies with all data answer" \
    lockstep_on 4 volume recover v --replica n1 --force --yes

echo "-- the copies on n1 and n2 are lost"
for i in 1 2; do
    node_kill "$i"
    rm -rf "$(node_pool "$i")"
    mkdir -p "$(node_pool "$i")"
done
node_start 3
check "it cannot be attached, and says where to look" \
    mentions "lockstep volume show v" lockstep_on 4 attach v --node n3 --force --wait 6
check "so does the volume" mentions "lockstep volume recover v" lockstep_on 4 volume show v
check "what would be lost is said first" \
    mentions "acknowledged writes since" lockstep_on 4 volume recover v --replica n3
check "and which copies" mentions "n1 (" lockstep_on 4 volume recover v --replica n3
check "nothing was done" mentions '"state":"out"' show v
check "a copy that does not answer is refused" \
    mentions "does not answer" lockstep_on 4 volume recover v --replica n2 --force --yes
check "it is not done without a yes" \
    mentions "say --yes" lockstep_on 4 volume recover v --replica n3 --force </dev/null

echo "-- recovered by force"
check "it is done" lockstep_on 4 volume recover v --replica n3 --force --yes
serves() { uri=$(lockstep_on 4 attach v --node n3 --wait 5 2>/dev/null); }
serve() { local end=$((SECONDS + 30)); until serves; do [ $SECONDS -lt $end ] || return 1; done; }
serve || die "not attached after recovery"
check "the data of the chosen copy is there" same_data "$uri" "$CLUSTER_DIR/old"
check "what may be missing is shown" mentions "recovered by force" lockstep_on 4 volume show v
check "it takes writes" nbdcopy --flush "$CLUSTER_DIR/new" "$uri"
for i in 1 2; do
    check "the pool that n$i lost is forgotten" lockstep_on 4 node forget-pool n$i default
    node_start $i
done
check "it gets its copies back" until_true 60 in_sync v 3
check "the new data is there" same_data "$uri" "$CLUSTER_DIR/new"

echo "-- the new history is durable"
node_kill 3
node_start 3
check "the owner takes note" lockstep_on 4 volume recover v --acknowledge
uri=$(lockstep_on 4 attach v --node n3 --force --wait 20 2>/dev/null) || die "not attached again"
check "the data is there" same_data "$uri" "$CLUSTER_DIR/new"
check "it is shown" mentions "attached on n3" lockstep_on 4 volume show v
check "the mark is gone" not mentions "by force" lockstep_on 4 volume show v
check "it is detached" lockstep_on 4 detach v
finish
