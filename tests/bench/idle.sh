#!/usr/bin/env bash
# What attached volumes cost that nobody uses: context switches and CPU time of each of three daemons,
# without volumes and with VOLUMES of them, attached on n1, each with a copy on every node; and how
# much memory n1 takes. Goals: nothing beyond heartbeats between nodes, which do not grow with
# volumes, and less than 64 MiB and 1 MiB for each volume.
#
# VOLUMES (100), SECONDS_EACH (10).
volumes=${VOLUMES:-100} each=${SECONDS_EACH:-10}
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# rest: context switches a second, and CPU ms a second, of each daemon, one on each line.
rest() {
    local i before=() after
    for i in 1 2 3; do before[i]=$(used "${NODE_PID[$i]}"); done
    # What is measured is a time in which nothing happens.
    sleep "$each"
    for i in 1 2 3; do
        after=$(used "${NODE_PID[$i]}")
        echo "${before[i]} $after" | awk -v s="$each" -v ms=$((1000 / $(getconf CLK_TCK))) \
            '{ printf "%.1f %.1f\n", ($4 - $2) / s, ($3 - $1) * ms / s }'
    done
}
resident_kib() { awk '/^VmRSS/ { print $2 }' "/proc/${NODE_PID[1]}/status"; }

pools_in_memory idle
cluster_up 3
mapfile -t none < <(rest)
begin_kib=$(resident_kib)
for ((v = 1; v <= volumes; v++)); do
    lockstep volume create "v$v" --size 64MiB --repl 3 >/dev/null || die "no volume"
    lockstep attach "v$v" --node n1 >/dev/null 2>&1 || die "v$v was not attached"
done
settled() { [ "$(lockstep --json volume list | grep -o '"health":"healthy"' | wc -l)" -eq "$volumes" ]; }
until_true 60 settled || die "not all volumes are healthy"
mapfile -t all < <(rest)
kib=$(resident_kib)
echo "$(machine), $each s each; switches a second, CPU ms a second"
said=
for i in 1 2 3; do
    echo "n$i: ${none[i - 1]} without volumes, ${all[i - 1]} with $volumes"
    said+="\"idle_switches_n$i\": $(ratio "${all[i - 1]% *}" "${none[i - 1]% *}"), "
done
goal_kib=$((65536 + 1024 * volumes)) word=met
[ "$kib" -le $goal_kib ] || word=missed
echo "memory of n1: $begin_kib KiB without volumes, $kib KiB with $volumes; goal <= $goal_kib: $word"
said+="\"idle_memory_vs_goal\": $(ratio "$kib" $goal_kib)"
[ $JSON = no ] || ON_CLEANUP+=("echo '{\"ratios\": {$said}}'")
finish
