# The table of cost.sh: a line of fio, then what perf counted for each of three daemons.
FILENAME ~ /job$/ { rate = $49; writes = $49 * $50 / 1000; next }
/^#/ || NF < 3 { next }
{
    file = substr(FILENAME, length(FILENAME))
    sub(/^syscalls:sys_enter_/, "", $3); sub(/:u$/, "", $3)
    if (!($3 in seen)) { seen[$3] = 1; order[++n] = $3 }
    count[$3, file] = $1 + 0
}
function row(title, what, scale, form,    i, line) {
    line = "| " title " |"
    for (i = 1; i <= 3; i++) line = line " " sprintf(form, count[what, i] * scale / writes) " |"
    print line " " sprintf(form, \
        (count[what, 1] + count[what, 2] + count[what, 3]) * scale / writes) " |"
}
END {
    if (writes < 1) { print "fio wrote nothing" >"/dev/stderr"; exit 1 }
    printf "| 4 KiB write, depth %d (%d a second) | n1 | n2 | n3 | all |\n", depth, rate
    print "|---|---|---|---|---|"
    row("CPU, us", "task-clock", 1000, "%.1f")
    row("context switches", "context-switches", 1, "%.2f")
    row("system calls", "raw_syscalls:sys_enter", 1, "%.2f")
    for (k = 1; k <= n; k++) {
        what = order[k]
        if (what ~ /^(task-clock|context-switches|raw_syscalls.*)$/) continue
        if (count[what, 1] + count[what, 2] + count[what, 3] < writes / 100) continue
        row("of these " what, what, 1, "%.2f")
    }
}
