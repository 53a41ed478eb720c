# The table of compare.sh. Reads tests/bench/goals, then the results of medium.sh.
BEGIN { FS = ";"; nsystems = split(systems, name, " "); nmedia = split(media, medium, " ") }
/^#/ || NF == 0 { next }
FILENAME ~ /goals$/ {
    key[++goals] = $1; cell[goals] = $2; metric[goals] = $3; peer[goals] = $4; sense[goals] = $5
    limit[goals, "memory"] = $6; limit[goals, "disk"] = $7
    next
}
{
    put($1, $2, $3, $4, "rate", $5); put($1, $2, $3, $4, "p50", $6); put($1, $2, $3, $4, "p99", $7)
    put($1, $2, $3, $4, "cpu", $8); put($1, $2, $3, $4, "switches", $9)
    put($1, $2, $3, $4, "each", 1000000 / $5)
}
function put(m, s, c, round, what, v) { value[m, s, c, what, round] = v + 0 }
function median(m, s, c, what,    i, j, t, v) {
    if (!((m, s, c, what, 1) in value)) return ""
    for (i = 1; i <= rounds; i++) v[i] = value[m, s, c, what, i]
    for (i = 2; i <= rounds; i++)
        for (j = i; j > 1 && v[j] < v[j - 1]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
    return rounds % 2 ? v[(rounds + 1) / 2] : (v[rounds / 2] + v[rounds / 2 + 1]) / 2
}
# A goal's ratio, or Lockstep's figure itself where there is no peer; "" if it was not measured.
function reached(g, m,    ours, theirs) {
    ours = median(m, "lockstep", cell[g], metric[g])
    if (peer[g] == "" || ours == "") return ours
    theirs = median(m, peer[g], cell[g], metric[g])
    return theirs == "" || theirs == 0 ? "" : ours / theirs
}
function met(g, m, r) { return sense[g] == "<=" ? r <= limit[g, m] : r >= limit[g, m] }
function row(m, title, c, what, form,    i, g, r, v, line, beside) {
    line = "| " title " |"
    for (i = 1; i <= nsystems; i++) {
        v = median(m, name[i], c, what)
        line = line " " (v == "" ? "-" : sprintf(form, v)) " |"
    }
    for (g = 1; g <= goals; g++) {
        if (cell[g] != c || metric[g] != what || limit[g, m] == "-") continue
        if ((r = reached(g, m)) == "") continue
        beside = beside (beside == "" ? "" : "; ")
        if (peer[g] != "") beside = beside sprintf("%.2f x %s, ", r, peer[g])
        beside = beside "goal " sense[g] " " limit[g, m] (met(g, m, r) ? ": met" : ": **missed**")
    }
    print line " " beside " |"
}
function table(m,    i, line, rule) {
    line = "| " m " |"; rule = "|---|"
    for (i = 1; i <= nsystems; i++) { line = line " " name[i] " |"; rule = rule "---|" }
    print ""; print line " Lockstep against the goals |"; print rule "---|"
    row(m, "4 KiB random write, depth 1: p50, us", "write 1", "p50", "%d")
    row(m, "the same: p99, us", "write 1", "p99", "%d")
    row(m, "4 KiB random write, depth 32: a second", "write 32", "rate", "%d")
    row(m, "the same: CPU of all daemons, us each", "write 32", "cpu", "%.1f")
    row(m, "the same: context switches of all daemons, each", "write 32", "switches", "%.2f")
    row(m, "4 KiB random write and flush, depth 1: us each", "flush 1", "each", "%d")
    row(m, "4 KiB random read, depth 1: a second", "read 1", "rate", "%d")
    row(m, "4 KiB random read, depth 32: a second", "read 32", "rate", "%d")
    row(m, "1 MiB sequential write, depth 4: a second", "stream 4", "rate", "%d")
}
END {
    for (i = 1; i <= nmedia; i++) table(medium[i])
    if (json != "yes") exit
    for (i = 1; i <= nmedia; i++)
        for (g = 1; g <= goals; g++)
            if ((r = reached(g, medium[i])) != "") {
                said = said (said == "" ? "" : ", ")
                said = said sprintf("\"%s%s\": %.3f", medium[i] == "disk" ? "disk_" : "", key[g], r)
            }
    print "{\"ratios\": {" said "}}"
}
