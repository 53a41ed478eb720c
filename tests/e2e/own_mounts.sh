# A mount namespace of its own for a test. Meant to be sourced before anything else. Without it,
# whoever makes a mount namespace of its own meanwhile holds what the test mounts, and a volume that
# is still mounted anywhere is not detached.
# shellcheck shell=bash
if [ -z "${OWN_MOUNTS:-}" ] && unshare --mount --propagation private true 2>/dev/null; then
    OWN_MOUNTS=yes exec unshare --mount --propagation private -- "$0" "$@"
fi
# What other runs have mounted, or were killed before they unmounted: a volume's device may get the
# number of one of theirs. Only this namespace loses sight of it.
if [ -n "${OWN_MOUNTS:-}" ]; then
    findmnt -rno TARGET | grep -E "^(/tmp|${TMPDIR:-/tmp})/lockstep-" | sort -r |
        while read -r dir; do umount -l "$dir"; done
fi
