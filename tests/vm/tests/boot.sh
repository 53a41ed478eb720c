#!/usr/bin/env bash
# a guest starts, has the modules of its kernel, and tells its exit status
# takes: 8
# modules: nbd
# disk: 400M
. /tests/vm/lib.sh
check "a module that was asked for is loaded" test -b /dev/nbd0
for fs in ext4 xfs; do
    check "mkfs.$fs" "mkfs.$fs" -q /dev/vda
    check "mount $fs" mount /dev/vda /mnt
    check "write" dd if=/dev/zero of=/mnt/x bs=1M count=8 conv=fsync status=none
    check "umount" umount /mnt
    wipefs -qa /dev/vda
done
check "the programs start" lockstepd --version
cluster_up 1
check "a daemon answers" lockstep volume create v --size 16MiB --repl 1
finish
