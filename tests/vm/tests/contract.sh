#!/usr/bin/env bash
# all that a daemon may do to a device of ublk, and many servers one after the other
# kernels: 6.12
# modules: ublk_drv
# limit: 120
. /tests/vm/lib.sh
lockstep-vm door ublk || fail "the contract of a door"
finish
