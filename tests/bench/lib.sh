# What the benchmarks share. Meant to be sourced by a script beside it, inside the namespace that
# `run` makes. Builds on tests/e2e/lib.sh.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../e2e/lib.sh"
need fio awk
fio --enghelp 2>/dev/null | grep -qw nbd || skip "this fio has no engine nbd"
JSON=no
[ "${1:-}" != --json ] || JSON=yes

# Bytes that went over the network of this namespace so far, with all headers.
wire() { sed -n "s/^ *lo: *\([0-9]*\) .*/\1/p" /proc/self/net/dev; }

# number KEY: the first number under this key in what `volume show` tells of v.
number() { lockstep --json volume show v | grep -o "\"$1\": *[0-9]*" | head -n 1 | grep -o '[0-9]*$'; }
# numbers KEY: all of them, one on each line.
numbers() { lockstep --json volume show v | grep -o "\"$1\": *[0-9]*" | grep -o '[0-9]*$'; }

# sum: of the numbers on standard input, one on each line.
sum() { paste -sd+ | awk -F+ '{ s = 0; for (i = 1; i <= NF; i++) s += $i; print s }'; }

# ratio A B: A / B with three digits.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", b ? a / b : 0 }'; }
