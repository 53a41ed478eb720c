#!/usr/bin/env bash
# Whatever arrives at a port of a daemon, the daemon and its volumes go on: noise, frames cut
# short, frames too large, frames of another version, of another cluster, of another protocol, and
# connections that say nothing.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
need nbdcopy cmp od

# Frames between daemons; docs/wire.md has the format. A peer that speaks versions 90 to 99 only:
hello_future=4c4b53310000010000000000000000000000000000000000000000000000000000000000
hello_future+=0000000000000000000000000000000025000000000000008be065a200000000072706cb
hello_future+=5a00630000000000000000000000000000000000010000000000000008737472616e6765
hello_future+=72
# A peer of another cluster:
hello_foreign=4c4b53310000010000000000000000000000000000000000000000000000000000000000
hello_foreign+=000000000000000000000000000000002500000000000000b008fd96000000003a4a6def
hello_foreign+=0100010000000000000000000000000000000007010000000000000008737472616e6765
hello_foreign+=72
# Intact headers that announce a body of 4 GiB, and a write of 1 GiB:
hello_huge=4c4b53310000010000000000000000000000000000000000000000000000000000000000
hello_huge+=00000000000000000000000000000000ffffffff000000008be065a20000000079b2cd6e
write_huge=4c4b53310100120000000000000000000000000000000000000000000000000000000000
write_huge+=0000000000000000000000000000000000000000000000400000000000000000d6967f60

# NBD: the client's flags; an option of 4 GiB; the export v without more ado; a request with a bad
# magic number; a write of 4 GiB.
nbd_flags=00000003
nbd_option_huge=${nbd_flags}49484156454f505400000007ffffffff
nbd_export=${nbd_flags}49484156454f5054000000010000000176
nbd_request_bad=${nbd_export}deadbeef$(printf '00%.0s' {1..24})
nbd_write_huge=${nbd_export}2560951300000001$(printf '00%.0s' {1..16})ffffffff

# HTTP/2: the client's first words, then a frame of 16 MiB; and the same cut short.
h2_preface=$(printf 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' | od -An -v -tx1 | tr -d ' \n')
h2_frame_huge=${h2_preface}ffffff040000000000$(printf 'ff%.0s' {1..64})
http1=$(printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' | od -An -v -tx1 | tr -d ' \n')
noise=$(head -c 4096 /dev/urandom | od -An -v -tx1 | tr -d ' \n')

# tell PORT HEX: sends bytes to a port of n1, and gives what it answers, as hex. A port that holds
# its answer back is left after some seconds. In a subshell, which a closed port may kill.
tell() (
    exec 6<>"/dev/tcp/$(node_ip 1)/$1" || return 1
    printf '%b' "$(sed 's/../\\x&/g' <<<"$2")" >&6 2>/dev/null
    timeout "${3:-3}" head -c 4096 <&6 2>/dev/null | od -An -v -tx1 | tr -d ' \n'
)

# leave PORT HEX: sends bytes and hangs up at once.
leave() (
    exec 6<>"/dev/tcp/$(node_ip 1)/$1" || return 1
    printf '%b' "$(sed 's/../\\x&/g' <<<"$2")" >&6 2>/dev/null
)

# The cluster that the first of these frames names.
cluster_up 3 --cluster 00000000-0000-0000-0000-000000000000
daemon=$(node_pid 1)
lockstep volume create v --size 16MiB >/dev/null || die "no volume"
fill v n1 4

# The daemon is the same process, and all its ports serve.
goes_on() {
    node_alive 1 && [ "$(node_pid 1)" = "$daemon" ] &&
        same_data "nbd://$(node_nbd_address 1)/v" &&
        nbdcopy --flush "$input" "$uri" &&
        lockstep_on 1 node show >/dev/null &&
        healthy v
}
check "before anything" goes_on

declare -A ports=([peer]=7170 [admin]=7171 [nbd]=10809)
for name in peer admin nbd; do
    port=${ports[$name]}
    echo "-- $name port"
    for bytes in "$noise" "$http1" "$hello_huge" "$write_huge" "$nbd_option_huge" \
        "$nbd_request_bad" "$nbd_write_huge" "$h2_frame_huge" 00; do
        tell "$port" "$bytes" 1 >/dev/null
    done
    check "noise and frames too large at the $name port" goes_on
    for bytes in "${hello_foreign:0:80}" "${hello_foreign:0:160}" "${h2_preface:0:20}" \
        "${nbd_option_huge:0:12}" "${nbd_write_huge:0:60}" ""; do
        leave "$port" "$bytes"
    done
    check "frames cut short at the $name port" goes_on
done

echo "-- strangers"
# A rejection is a frame of kind 3; the versions that are spoken stand behind the reason.
answer=$(tell 7170 "$hello_future")
check "a peer of another version is told which are spoken" test "${answer:12:2}" = 03
check "namely versions 1 to 4" test "${answer:146:8}" = 01000400
answer=$(tell 7170 "$hello_foreign")
check "a peer of another cluster is refused" test "${answer:12:2}" = 03
check "strangers did no harm" goes_on

echo "-- many that say nothing"
for port in 7170 7171 10809; do
    fds=()
    for _ in {1..60}; do
        exec {fd}<>"/dev/tcp/$(node_ip 1)/$port" && fds+=("$fd")
    done
    check "60 silent connections at port $port" goes_on
    for fd in "${fds[@]}"; do exec {fd}>&-; done
done

echo "-- sockets"
if command -v perl >/dev/null && perl -MIO::Socket::UNIX -e1 2>/dev/null; then
    shout() {
        head -c 65536 /dev/urandom | perl -MIO::Socket::UNIX -e '$SIG{PIPE} = "IGNORE";
            my $socket = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 1;
            local $/; print $socket <STDIN>; close $socket;' "$1"
    }
    for _ in {1..20}; do
        shout "$(node_dir 1)/sock"
        shout "$(node_dir 1)/nbd/v.sock"
    done
    check "noise at the unix sockets" goes_on
else
    echo "perl is not installed: nothing was said to the unix sockets"
fi

echo "-- calls"
check "no daemon broke an invariant" not grep -lq panicked "$(node_log 1)" "$(node_log 2)" \
    "$(node_log 3)"
lines=$(wc -l <"$(node_log 1)")
check "its log has not drowned ($lines lines)" test "$lines" -lt 3000
finish
