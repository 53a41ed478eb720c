#!/usr/bin/env bash
# Thick volumes: all copies have all their space from the beginning, those that are made later too.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# has_space VOLUME NODE MIB: whether so much is taken for the data of a copy.
has_space() {
    local blocks
    blocks=$(stat -c %b "$(replica_data "$1" "$2")") && [ $((blocks / 2048)) -ge "$3" ]
}

cluster_up 3
fallocate -l 4096 "$CLUSTER_DIR/probe" || skip "this file system cannot set space aside"
check "a volume" lockstep volume create v --size 64MiB --repl 2 --thick --node n1 --node n2
check "it says so" says '"thick":true' show v
check "once more is the same" \
    lockstep volume create v --size 64MiB --repl 2 --thick --node n1 --node n2
check_refused 4 "thick is true, not false" \
    lockstep volume create v --size 64MiB --repl 2 --node n1 --node n2
lockstep volume create thin --size 64MiB --repl 1 --node n1 >/dev/null || die "no volume"
check "another one takes nothing" not has_space thin 1 1
for i in 1 2; do check "n$i has its space" has_space v $i 64; done
fill v n1 16
check "a copy more" lockstep volume set v --repl 3
check "is in sync" until_true 30 in_sync v 3
check "and has its space" has_space v 3 64
check "larger" lockstep volume resize v --size 96MiB
for i in 1 2 3; do check "n$i has its space then" has_space v $i 96; done
check "what was there is there" same_data "$uri"
lockstep detach v >/dev/null || die "not detached"
finish
