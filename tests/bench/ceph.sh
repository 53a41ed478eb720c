# Ceph with one monitor and three OSDs, each with a file for a disk (BlueStore), and an RBD image of
# size 3 without a cache in the client, as a peer of the benchmark. Sourced by medium.sh.
# shellcheck shell=bash

start_ceph() {
    local home=$base/ceph i uuid
    mkdir -p "$home/run" "$home/mon" "$home/osd0" "$home/osd1" "$home/osd2"
    uuid=$(cat /proc/sys/kernel/random/uuid)
    ceph_settings "$home" "$uuid" >"$home/conf"
    export CEPH_CONF=$home/conf
    {
        monmaptool --create --fsid "$uuid" --addv a '[v2:127.0.0.1:3300/0]' "$home/map" &&
            ceph-mon --mkfs -i a --monmap "$home/map" --setuser root --setgroup root
    } >"$home/log" 2>&1 || die "no Ceph monitor: $(cat "$home/log")"
    start ceph "$home/mon.log" ceph-mon -i a -f --setuser root --setgroup root
    await "the Ceph monitor" "$home/mon.log" timeout 10 ceph mon stat
    for i in 0 1 2; do
        uuid=$(cat /proc/sys/kernel/random/uuid)
        { timeout 20 ceph osd new "$uuid" && ceph-osd -i $i --mkfs --osd-uuid "$uuid"; } \
            >"$home/log" 2>&1 || die "no Ceph OSD: $(cat "$home/log")"
        start ceph "$home/osd$i.log" ceph-osd -i $i -f --setuser root --setgroup root
    done
    await "Ceph's OSDs" "$home/osd0.log" says "3 up" timeout 10 ceph osd stat
    {
        timeout 20 ceph osd pool create rbd 32 && timeout 60 rbd create v --size "${SIZE_MIB}M"
    } >"$home/log" 2>&1 || die "no RBD image: $(cat "$home/log")"
    target_of[ceph]="--ioengine=rbd --clientname=admin --pool=rbd --rbdname=v"
}

# ceph_settings HOME UUID: nothing outside of the directory, nobody is asked who he is.
ceph_settings() {
    cat <<END
[global]
fsid = $2
mon host = v2:127.0.0.1:3300/0
auth cluster required = none
auth service required = none
auth client required = none
keyring = /dev/null
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = $1/run
admin socket =
pid file =
log file = /dev/null
mon cluster log file = /dev/null
mon data = $1/mon
mon data avail crit = 1
osd data = $1/osd\$id
osd objectstore = bluestore
bluestore block size = $(((SIZE_MIB * 2 + 512) << 20))
osd class load list = *
osd pool default size = 3
osd pool default min size = 2
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
rbd cache = false
END
}
