#!/usr/bin/env bash
# Ends the demonstration in each of its steps by each signal, and looks for what is left: processes,
# sockets, files. What could be left is all in one directory that this test chose.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ -x "$BIN_DIR/lockstep" ] || die "no lockstep in $BIN_DIR; build it or set LOCKSTEP_BIN_DIR"

work=$(mktemp -d "${TMPDIR:-/tmp}/lsdk.XXXXXX") || exit 1
ON_CLEANUP+=("rm -rf '$work'")

# The processes that run in a directory or speak of it, as their directories in /proc. The dead do
# neither. The pattern comes by a pipe, so that grep does not find itself.
left_processes() {
    grep -lzsF -f - /proc/[0-9]*/cmdline <<<"$1/"
    find /proc/[0-9]*/cwd -maxdepth 0 -lname "$1/*" 2>/dev/null
}

nothing_left() {
    [ -z "$(left_processes "$1")" ] && [ -z "$(ls -A "$1")" ] && ! grep -qF "$1" /proc/net/unix
}

describe() {
    echo "processes: $(left_processes "$1" | tr '\n' ' ');" \
        "files: $(ls -A "$1" | head -n 5 | tr '\n' ' ');" \
        "sockets: $(grep -cF "$1" /proc/net/unix)"
}

# one CASE SIGNAL TARGET WORDS: starts a demonstration, sends the signal once it has said the
# words, and tells what is left. TARGET is process or group.
one() {
    local name=$1 signal=$2 target=$3 words=$4 dir=$work/$1 log=$work/$1.log pid status
    local deadline=$((SECONDS + 120))
    mkdir "$dir"
    : >"$log"
    setsid "$BIN_DIR/lockstep" demo --dir "$dir" --size 64MiB --seconds 1 >"$log" 2>&1 </dev/null &
    pid=$!
    # With job control off, setsid does not fork, so this is the demonstration itself.
    until grep -q -- "$words" "$log"; do
        if ! process_alive $pid || [ $SECONDS -ge $deadline ]; then
            echo "FAIL $name: never said \`$words\`: $(tail -n 3 "$log")"
            kill -KILL $pid 2>/dev/null
            return
        fi
        sleep 0.01
    done
    if [ -z "$(left_processes "$dir")" ]; then
        echo "FAIL $name: this test does not see the processes that it is about"
    fi
    if [ "$target" = group ]; then
        kill -"$signal" -- -$pid
    else
        kill -"$signal" $pid
    fi
    # The shell would tell each death.
    { wait $pid; } 2>/dev/null
    status=$?
    if ! until_true 30 nothing_left "$dir"; then
        echo "FAIL $name: left after SIG$signal: $(describe "$dir")"
    elif [ $status -ne $((128 + $(kill -l "$signal"))) ]; then
        echo "FAIL $name: exit status $status after SIG$signal"
    else
        echo "PASS $name: nothing is left after SIG$signal in \`$words\`"
    fi
}

cases=(
    "01 KILL process starting"
    "02 INT process starting"
    "03 KILL process making a volume"
    "04 KILL group attached on"
    "05 TERM process copying"
    "06 KILL process writing at random"
    "07 INT group writing at random"
    "08 KILL process kill -9 of"
    "09 TERM process kill -9 of"
    "10 KILL process taken over"
    "11 HUP group being built"
    "12 KILL process being built"
    "13 KILL process started again"
    "14 INT process in sync again"
    "15 KILL group comparing every block"
    "16 KILL process comparing the copies"
)
# Some side by side: each has its own directory and its own addresses.
running=0
for entry in "${cases[@]}"; do
    read -r name signal target words <<<"$entry"
    one "$name" "$signal" "$target" "$words" >"$work/$name.verdict" &
    running=$((running + 1))
    if [ $running -ge 4 ]; then
        wait -n
        running=$((running - 1))
    fi
done
wait
for entry in "${cases[@]}"; do
    verdict=$(cat "$work/${entry%% *}.verdict")
    echo "$verdict"
    case $verdict in *FAIL* | "") FAILURES=$((FAILURES + 1)) ;; esac
done
finish
