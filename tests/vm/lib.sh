# Debian kernels in QEMU. Meant to be sourced by a script beside it; see `boot` and `run`.
#
# Everything made here lies in <target>/vm: kernel packages (kept), images and sockets (removed).
# shellcheck shell=bash

set -uo pipefail
export PATH=$PATH:/usr/sbin:/sbin

VM_SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VM_ROOT=$(cd "$VM_SRC/../.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$VM_ROOT/target}
case $TARGET in /*) ;; *) TARGET=$VM_ROOT/$TARGET ;; esac
VM_DIR=$TARGET/vm
readonly VM_SRC VM_ROOT TARGET VM_DIR

# The kernels that are tried: Debian 12's own, and what its backports offer.
readonly VM_KERNELS=(6.1 6.12)

# What a guest gets of the host's programs; busybox has the rest, and is slow at comparing.
readonly VM_TOOLS=(bash fio mkfs.ext4 mkfs.xfs e2fsck fsck.ext4 resize2fs xfs_repair xfs_logprint
    xfs_growfs mount umount losetup lsblk findmnt wipefs blkid blockdev blkdiscard fallocate fstrim dmsetup timeout
    stat dd kmod cmp sha256sum grep awk sed)
# What it gets of ours, as far as it is built.
readonly VM_PROGRAMS=(lockstepd lockstep lockstep-vm examples/device-memory examples/nbd-memory)

vm_die() { echo "tests/vm: $*" >&2; exit 1; }

# The Debian packages of all these programs.
readonly VM_PACKAGES=(qemu-system-x86 busybox-static cpio zstd xz-utils lz4 kmod binutils libc-bin
    bash fio e2fsprogs xfsprogs mount util-linux fdisk dmsetup coreutils diffutils grep mawk sed)

# vm_need: ends with 77, which means skipped, unless what makes and runs a guest is installed.
vm_need() {
    local tool missing=()
    for tool in qemu-system-x86_64 busybox cpio zstd xz lz4 depmod apt-get dpkg-deb ldd ldconfig \
        mke2fs strip "${VM_TOOLS[@]}"; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        # Version 7 emulates a newer kernel wrongly: flags are lost, and most boots end in a panic.
        [ "$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\)\..*/\1/p')" -ge 8 ] && return
        missing=("a QEMU from version 8 on")
    fi
    echo "skipped: not installed: ${missing[*]}; as root, \`tests/vm/run --setup\` does it"
    exit 77
}

# vm_setup: installs the packages, QEMU from backports. As root.
vm_setup() {
    export DEBIAN_FRONTEND=noninteractive
    vm_apt apt-get update >/dev/null &&
        vm_apt apt-get install -y --no-install-recommends "${VM_PACKAGES[@]}" &&
        vm_apt apt-get install -y --no-install-recommends -t bookworm-backports qemu-system-x86
}

# --- kernels -----------------------------------------------------------------------------------

# vm_apt COMMAND…: apt with sources of our own, derived from this machine's Debian mirror, so that
# backports can be asked for without changing what the machine installs from.
vm_apt() {
    local dir=$VM_DIR/apt tool=$1 mirror
    shift
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    if [ ! -s "$dir/sources.list" ]; then
        mirror=$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(COMPONENT) $(CODENAME)' |
            awk '$2 == "Debian" && $3 == "main" && $4 !~ /security/ { print $1; exit }')
        [ -n "$mirror" ] || vm_die "this machine's apt knows no Debian mirror: run apt-get update"
        for suite in bookworm bookworm-backports; do
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
        done >"$dir/sources.list"
    fi
    "$tool" -q -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" -o APT::Sandbox::User= \
        -o Dir::Etc::preferencesparts=/dev/null "$@"
}

# vm_kernel SERIES: makes <target>/vm/kernel-SERIES, once: `release`, `vmlinux` and `lib/modules`.
vm_kernel() {
    local series=$1 dir=$VM_DIR/kernel-$1 new package
    [ -e "$dir/vmlinux" ] && return
    mkdir -p "$VM_DIR"
    (
        flock 9
        [ -e "$dir/vmlinux" ] && exit
        vm_apt apt-get update >/dev/null || vm_die "apt-get update failed"
        package=$(vm_apt apt-cache show linux-image-cloud-amd64 2>/dev/null |
            sed -n "s/^Depends: \(linux-image-${series//./\\.}\.[^ ,]*\).*/\1/p" | head -n 1)
        [ -n "$package" ] || vm_die "the mirror has no linux-image-cloud-amd64 of Linux $series"
        new=$(mktemp -d "$VM_DIR/new.XXXXXX") && cd "$new" || exit 1
        vm_apt apt-get download "$package" >&2 && dpkg-deb -x ./*.deb . && rm ./*.deb || exit 1
        echo "${package#linux-image-}" >release
        # The guest would spend seconds on this, each time.
        find lib/modules -name '*.xz' -print0 | xargs -0 --no-run-if-empty xz -d
        depmod -b . "$(cat release)"
        vm_unpack_kernel boot/vmlinuz-* >vmlinux.part && mv vmlinux.part vmlinux || exit 1
        rm -rf boot usr "$dir" && mv "$new" "$dir"
    ) 9>"$VM_DIR/lock" || vm_die "no kernel $series"
}

# vm_unpack_kernel VMLINUZ: the ELF image inside, which QEMU boots without the slow unpacking in the
# guest. Where the payload is, the header says (Documentation/arch/x86/boot.rst).
vm_unpack_kernel() {
    local file=$1 setup offset length magic
    setup=$(od -An -tu1 -j $((0x1f1)) -N 1 "$file")
    offset=$(od -An -tu4 -j $((0x248)) -N 4 "$file")
    length=$(od -An -tu4 -j $((0x24c)) -N 4 "$file")
    offset=$((offset + (${setup// /} + 1) * 512))
    magic=$(od -An -tx1 -j $offset -N 4 "$file")
    # The last four bytes are the unpacked size, which the decompressors do not know.
    dd if="$file" bs=1M iflag=skip_bytes,count_bytes skip=$offset count=$((length - 4)) status=none |
        case $magic in
            *fd\ 37\ 7a\ 58*) xz -dc ;;
            *28\ b5\ 2f\ fd*) zstd -dc ;;
            *02\ 21\ 4c\ 18*) lz4 -dc ;;
            *1f\ 8b*) gzip -dc ;;
            *) vm_die "$file is packed in a way we do not know:$magic" ;;
        esac
}

# --- images ------------------------------------------------------------------------------------

# A guest has two parts: a disk with all programs and modules, which is made anew only when one of
# them has changed, and an initramfs with the first process and the test. What lies on a disk costs
# a guest neither time at its start nor memory.

# vm_program DIR FILE [NAME]: copies a program with its libraries, without symbols of ours.
vm_program() {
    local dir=$1 file name library
    file=$(command -v "$2") || vm_die "no program $2"
    name=${3:-$(basename "$2")}
    file=$(readlink -f "$file")
    mkdir -p "$dir/bin"
    rm -f "$dir/bin/$name"
    case $file in
        "$TARGET"/*) strip -g -o "$dir/bin/$name" "$file" ;;
        *) cp "$file" "$dir/bin/$name" ;;
    esac
    ldd "$file" 2>/dev/null | grep -o '/[^ )]*' | while read -r library; do
        mkdir -p "$dir$(dirname "$library")"
        cp -Ln "$library" "$dir$library"
    done
}

# Everything that the disk is made from, with what changes when it does.
vm_disk_parts() {
    local name
    cat "$VM_SRC/lib.sh"
    for name in "${VM_TOOLS[@]}" busybox; do readlink -f "$(command -v "$name")"; done |
        xargs stat -c '%n %i %Y %s'
    for name in "${VM_PROGRAMS[@]}"; do stat -c '%n %i %Y %s' "$TARGET/release/$name" 2>/dev/null; done
    stat -c '%n %i' "$VM_DIR"/kernel-*
}

# vm_disk: makes <target>/vm/disk, unless it is there and as it should be.
vm_disk() {
    (
        flock 9
        parts=$(vm_disk_parts)
        [ -e "$VM_DIR/disk" ] && [ "$parts" = "$(cat "$VM_DIR/disk.parts" 2>/dev/null)" ] && exit
        rm -rf "$VM_DIR"/{disk.new,disk.dir,disk.parts}
        dir=$VM_DIR/disk.dir
        mkdir -p "$dir"/{bin,lib/modules,lib64,usr,etc}
        for name in sbin usr/bin usr/sbin; do ln -s /bin "$dir/$name"; done
        cp "$(command -v busybox)" "$dir/bin/busybox"
        for name in $(busybox --list); do
            [ "$name" = busybox ] || ln -s busybox "$dir/bin/$name"
        done
        for name in "${VM_TOOLS[@]}"; do vm_program "$dir" "$name"; done
        for name in modprobe insmod lsmod depmod; do ln -sf kmod "$dir/bin/$name"; done
        for name in "${VM_PROGRAMS[@]}"; do
            [ ! -e "$TARGET/release/$name" ] || vm_program "$dir" "$TARGET/release/$name"
        done
        ldconfig -r "$dir" || exit
        for name in "$VM_DIR"/kernel-*; do cp -al "$name"/lib/modules/* "$dir/lib/modules/" || exit; done
        truncate -s $(($(du -sm "$dir" | cut -f 1) * 5 / 4 + 16))M "$VM_DIR/disk.new" &&
            mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$dir" "$VM_DIR/disk.new" || exit
        rm -rf "$dir"
        mv "$VM_DIR/disk.new" "$VM_DIR/disk" && echo "$parts" >"$VM_DIR/disk.parts"
    ) 9>"$VM_DIR/disk.lock" || vm_die "no disk with the programs"
}

# vm_image OUT "MODULES" "PROGRAMS" SCRIPT "FILES": an initramfs that loads the modules and runs the
# script. Programs are files of the host; `name=file` gives one another name.
vm_image() {
    local out=$1 modules=$2 programs=$3 script=$4 files=$5 dir name
    dir=$(mktemp -d "$VM_DIR/image.XXXXXX") || exit 1
    mkdir -p "$dir"/{dev,proc,sys,tmp,run,mnt,etc,root,var,disk,tests/e2e,tests/vm}
    for name in bin sbin lib lib64 usr etc/ld.so.cache; do ln -s "/disk/$name" "$dir/$name"; done
    cp "$(command -v busybox)" "$dir/busybox"
    ln -s /proc/mounts "$dir/etc/mtab"
    echo "root:x:0:0:root:/root:/bin/sh" >"$dir/etc/passwd"
    echo "$modules" >"$dir/etc/modules"
    for name in $programs; do
        vm_program "$dir/with" "${name#*=}" "$(basename "${name%%=*}")"
    done
    cp "$VM_ROOT/tests/e2e/lib.sh" "$dir/tests/e2e/"
    cp "$VM_SRC/guest/"* "$dir/tests/vm/"
    # shellcheck disable=SC2086 # names without blanks
    [ -z "$files" ] || cp $files "$dir/tests/vm/"
    cp "$script" "$dir/tests/vm/test"
    cp "$VM_SRC/guest/init" "$dir/init"
    chmod +x "$dir/init" "$dir/tests/vm/test"
    (cd "$dir" && find . -print0 | cpio --null -o -H newc -R 0:0 --quiet) >"$out"
    local status=$?
    rm -rf "$dir"
    return $status
}

# --- guests ------------------------------------------------------------------------------------

# KVM is used where it can run a stock kernel; a device file alone says little.
vm_accel() {
    if [ -w /dev/kvm ] && { [ -d /sys/module/kvm_intel ] || [ -d /sys/module/kvm_amd ]; }; then
        echo kvm
    else
        echo tcg,thread=multi
    fi
}

# vm_qemu KERNEL DIR MEMORY_MIB CPUS "KERNEL ARGUMENTS" [QEMU ARGUMENT…]: becomes the guest with
# the initramfs DIR/image, its console on standard output. Its script's exit status is in DIR/status.
vm_qemu() {
    local kernel=$1 dir=$2 memory=$3 cpus=$4 append=$5 accel khz
    shift 5
    accel=$(vm_accel)
    # An emulated guest counts the host's cycles, and a busy host makes it miscount them.
    khz=$(awk -F: '/^cpu MHz/ { printf "%d", $2 * 1000; exit }' /proc/cpuinfo)
    [ "$accel" = kvm ] ||
        append="tsc_early_khz=$khz tsc=reliable no_timer_check vm.env.VM_PATIENCE=3 $append"
    exec qemu-system-x86_64 -machine q35 -accel "$accel" -cpu max -smp "$cpus" -m "$memory" \
        -nodefaults -no-user-config -display none -serial stdio -no-reboot \
        -device virtio-serial -chardev "file,id=status,path=$dir/status" \
        -device virtserialport,chardev=status,name=status \
        -drive "file=$VM_DIR/disk,format=raw,if=none,id=disk,readonly=on" \
        -device nvme,serial=disk,drive=disk \
        -kernel "$VM_DIR/kernel-$kernel/vmlinux" -initrd "$dir/image" \
        -append "console=ttyS0 panic=-1 mitigations=off quiet $append" "$@" </dev/null
}

# vm_status DIR: what the guest's script ended with; 99 if the guest panicked, was reset or killed.
vm_status() { if [ -s "$1/status" ]; then tr -d '\r\n' <"$1/status"; else echo 99; fi; }

# Prefixes each line with the seconds since the start, as bash counts them.
vm_stamped() {
    local line begin=${EPOCHREALTIME/./} now
    while IFS= read -r line || [ -n "$line" ]; do
        now=$((${EPOCHREALTIME/./} - begin))
        printf '%4d.%02d %s\n' $((now / 1000000)) $((now / 10000 % 100)) "${line%$'\r'}"
    done
}
