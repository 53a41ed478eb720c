#!/usr/bin/env bash
# Lockstep beside its peers: three copies on loopback each, the same fio job for all, in rounds that
# go over all of them in turn; first on memory-backed files, then on files of one disk. See `run`.
# Ends with the medians as a table, with the goals beside; a goal that is missed is told, and is no
# failure. With --json the last line is {"ratios": {…}}: medians of Lockstep by those of a peer, on
# memory; those on the disk begin with "disk_".
#
# floor: the simplest replicator there can be (tests/bench/floor). single: one local copy behind the
# same door. qemu: QEMU's quorum driver over three qemu-nbd. ceph: RBD over three OSDs (see ceph.sh).
# GlusterFS is not driven yet.
#
# ROUNDS (5), SECONDS_EACH (3), SIZE_MIB (256; times 16 in memory), MEDIA ("memory disk"), DISK_DIR
# (/var/tmp), LOCKSTEP_BIN_DIR.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rounds=${ROUNDS:-5} each=${SECONDS_EACH:-3}
json=no peers=floor,qemu,ceph,gluster
usage() {
    echo "usage: tests/bench/run [compare] [--quick] [--peers floor,qemu,ceph,gluster] [--json]" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
        --quick) rounds=3 each=1 ;;
        --json) json=yes ;;
        --peers) [ $# -gt 1 ] || usage; peers=$2; shift ;;
        --peers=*) peers=${1#*=} ;;
        *) usage ;;
    esac
    shift
done
systems="lockstep single"
for peer in ${peers//,/ }; do
    case $peer in
        floor) systems+=" floor" ;;
        qemu)
            if command -v qemu-nbd >/dev/null; then systems+=" qemu"
            else echo "left out: qemu: qemu-nbd is not installed (Debian: qemu-utils)"; fi ;;
        ceph)
            if ! command -v ceph-mon >/dev/null || ! command -v ceph-osd >/dev/null; then
                echo "left out: ceph: it is not installed (Debian: ceph-mon ceph-osd ceph-common)"
            elif ! fio --enghelp 2>/dev/null | grep -qw rbd; then
                echo "left out: ceph: this fio has no engine rbd"
            else systems+=" ceph"; fi ;;
        gluster) echo "left out: gluster: this benchmark does not drive it yet" ;;
        *) echo "tests/bench/run: no peer '$peer'; there are floor, qemu, ceph and gluster" >&2; usage ;;
    esac
done

work=$(mktemp -d "${TMPDIR:-/tmp}/lockstep-bench.XXXXXX") || exit 1
disk=
child=
cleanup() {
    local status=$?
    trap - EXIT INT TERM HUP
    if [ -n "$child" ]; then kill -KILL "$child" 2>/dev/null; wait "$child" 2>/dev/null; fi
    umount -l "$work/memory" 2>/dev/null
    rm -rf "$work" ${disk:+"$disk"}
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

export SYSTEMS=$systems ROUNDS=$rounds SECONDS_EACH=$each SIZE_MIB=${SIZE_MIB:-256}
media=()
for medium in ${MEDIA:-memory disk}; do
    case $medium in
        memory)
            at=$work/memory
            mkdir "$at" && mount -t tmpfs -o mode=700 lockstep-compare "$at" || exit 1
            if ! dd if=/dev/zero of="$at/probe" bs=4096 count=1 oflag=direct 2>/dev/null; then
                echo "left out: memory: files in memory take no direct I/O before Linux 6.6"
                continue
            fi
            rm "$at/probe" ;;
        disk)
            at=${DISK_DIR:-/var/tmp}
            case $(findmnt --noheadings --output FSTYPE --target "$at") in
                '' | tmpfs | ramfs | rootfs)
                    echo "left out: disk: $at is not on a disk; set DISK_DIR"
                    continue ;;
            esac
            disk=$(mktemp -d "$at/lockstep-compare.XXXXXX") || exit 1
            at=$disk ;;
        *) echo "MEDIA: there are memory and disk, no '$medium'" >&2; exit 2 ;;
    esac
    # Whatever happens to either, no process outlives it.
    TMPDIR=$work setpriv --pdeathsig KILL unshare --pid --fork --kill-child --mount-proc -- \
        "$here/medium.sh" "$medium" "$at" "$work/results" &
    child=$!
    wait "$child"
    status=$?
    child=
    [ $status -eq 0 ] || exit $status
    media+=("$medium")
    [ "$medium" != memory ] || umount "$at"
done
[ ${#media[@]} -gt 0 ] || { echo "skipped: nothing to measure on"; exit 77; }

echo "Linux $(uname -r), $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg)," \
    "$rounds rounds of $each s; medians"
awk -v systems="$systems" -v media="${media[*]}" -v rounds="$rounds" -v json=$json \
    -f "$here/compare.awk" "$here/goals" "$work/results"
