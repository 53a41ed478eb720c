#!/usr/bin/env bash
# Blocks of one copy are damaged on its disk, where nobody reads them; a scrub finds and mends them.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp

damage() { # damage FILE BLOCK…: these blocks of a data file are overwritten.
    local file=$1 block
    shift
    for block in "$@"; do
        head -c 4096 /dev/urandom |
            dd of="$file" bs=4096 seek="$block" conv=notrunc,fsync status=none || return 1
    done
}

cluster_up 3 --rebuild-after-ms 600000
lockstep volume create v --size 32MiB >/dev/null || die "no volume"
check "a detached volume is not scrubbed" refused "lockstep attach v" lockstep volume scrub v
fill v n1 16

echo "-- nothing is bad"
check "a scrub says so" says "no bad block was found" lockstep volume scrub v --wait
check "the volume shows it" says "scrubbed" lockstep volume show v

echo "-- blocks of one copy are bad"
data=$(replica_data v 2)
damage "$data" 0 1 700 2048 4095 || die "cannot damage $data"
check "asked of another node, all are mended" \
    says "5 bad blocks mended" lockstep_on 2 volume scrub v --wait
check "they are counted" says '"mended_blocks":5' show v
check "and shown beside the copy" says "5 bad blocks mended" lockstep volume show v
check "the file is whole again" cmp -n $((16 << 20)) "$data" "$input"
check "a second scrub finds nothing" says "no bad block was found" lockstep volume scrub v --wait

echo "-- a block of every copy is bad"
for i in 1 2 3; do damage "$(replica_data v $i)" 33 || die "cannot damage copy $i"; done
check "that cannot be mended, and it says so" \
    refused "1 that no copy can give" lockstep volume scrub v --wait
lockstep detach v >/dev/null
check "it is detached" says "not attached" lockstep volume show v
finish
