#!/usr/bin/env bash
# all that a daemon may do to a device of ublk and of NBD, and many servers one after the other
# modules: nbd
# takes: 80
# limit: 240
. /tests/vm/lib.sh
doors=nbd
[ "$(uname -r | cut -d. -f1-2)" = 6.1 ] || doors="ublk nbd"
for door in $doors; do lockstep-vm door "$door" || fail "the contract of a door: $door"; done
finish
