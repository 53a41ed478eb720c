#!/usr/bin/env bash
# The demonstration must be able to fail: damage is done behind the daemons' backs, and each kind
# must be told in its report and in its exit status.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ -x "$BIN_DIR/lockstep" ] || die "no lockstep in $BIN_DIR; build it or set LOCKSTEP_BIN_DIR"

work=$(mktemp -d "${TMPDIR:-/tmp}/lsdn.XXXXXX") || exit 1
ON_CLEANUP+=("rm -rf '$work'")

# The value of a key of the report.
figure() { sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p" "$work/$1.out"; }

# demo NAME WORDS COMMAND…: runs a demonstration and, once it has said the words, the command. Leaves
# the exit status in $status.
demo() {
    local name=$1 words=$2 pid deadline=$((SECONDS + 120))
    shift 2
    mkdir "$work/$name"
    : >"$work/$name.err"
    "$BIN_DIR/lockstep" demo --json --dir "$work/$name" --size 64MiB --seconds 1 --seed 1 \
        >"$work/$name.out" 2>"$work/$name.err" </dev/null &
    pid=$!
    until grep -q -- "$words" "$work/$name.err"; do
        process_alive $pid && [ $SECONDS -lt $deadline ] || break
        sleep 0.02
    done
    "$@" || fail "$name: the damage could not be done"
    wait $pid
    status=$?
}

# garbage FILE OFFSET COUNT: bytes that nobody wrote.
garbage() {
    dd if=/dev/urandom of="$1" bs=4096 seek=$(($2 / 4096)) count="$3" conv=notrunc,fdatasync \
        status=none
}

# expect NAME KEY VALUE: the report says so.
expect() {
    if [ "$(figure "$1" "$2")" = "$3" ]; then
        pass "$1: $2 is $3"
    else
        fail "$1: $2 is $(figure "$1" "$2"), not $3; $(tail -n 3 "$work/$1.err")"
    fi
}

readonly LAST="is in sync again after"

demo nothing "$LAST" true
expect nothing ok true
check "nothing: the exit status is 0" [ "$status" -eq 0 ]

# Each copy lacks another block. What is read is mended, but all is read from one copy only: the
# comparison of the files has to see the others.
damage_apart() {
    local data offset=0
    for data in "$work"/apart/*/n?/pool/replicas/*/data; do
        garbage "$data" $offset 1
        offset=$((offset + (2 << 20)))
    done
}
demo apart "$LAST" damage_apart
expect apart replicas_identical false
expect apart input_sha256_ok true
expect apart ok false
check "apart: the exit status is 1" [ "$status" -eq 1 ]

# With every copy damaged, reading must fail or the copied file must be seen to have changed.
damage_all() {
    local data
    for data in "$work"/every-copy/*/n?/pool/replicas/*/data; do garbage "$data" 8192 2; done
}
demo every-copy "$LAST" damage_all
check "every-copy: the exit status is 1" [ "$status" -eq 1 ]
if grep -q "reading block 0: .*input/output error" "$work/every-copy.err"; then
    pass "every-copy: what fails its checksum is not served"
else
    expect every-copy input_sha256_ok false
fi
finish
