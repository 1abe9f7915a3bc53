#!/usr/bin/env bash
# Builds the oracle's machine: a kernel image that has the ovpn module, and an initrd that runs a job on it. The initrd
# holds busybox, OpenVPN 2.7 (built with DCO) and the modules that jobs are about, WireGuard among them.
#
#   build.sh [DIR]    build into DIR, unless DIR already holds a machine made by this very script;
#                     without DIR into $OVPN_GO_ORACLE or root's cache directory
#
# DIR then holds vmlinuz, initrd (cpio, newc, uncompressed) and version. The job comes in a second cpio archive,
# appended to the initrd: /job/run is executed, and what it leaves in /out is sent back on the virtio serial port
# "oracle" as a tar archive. If there is a port "terminal", what the job prints appears there as it comes.
#
# The packages come from the mirror that apt on this machine is set up with.
set -euo pipefail

dir=${1:-${OVPN_GO_ORACLE:-/var/cache/ovpn-go/oracle}}
want=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)
stamp=$dir/.oracle

made() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; }

if made; then
	exit 0
fi
mkdir -p "$(dirname "$dir")"
# Whoever comes second finds the machine made.
exec 9>"$dir.lock"
flock 9
if made; then
	exit 0
fi
for tool in mmdebstrap cpio unxz; do
	command -v "$tool" >/dev/null || {
		echo "oracle: $tool is missing; install it with: apt-get install mmdebstrap cpio xz-utils" >&2
		exit 1
	}
done

mirror=$(apt-get indextargets --format '$(SITE)' | grep -v -e security -e 'apt$' | sort -u | head -n1)
[ -n "$mirror" ] || {
	echo "oracle: apt has no Debian mirror; run apt-get update first" >&2
	exit 1
}

# Built beside its final place and renamed, so that an interrupted build is never taken for a finished one.
tmp=$dir.new
rm -rf --one-file-system "$tmp"
mkdir -p "$tmp"

# Only unpacked: no maintainer script runs, and nothing makes an initramfs of its own.
mmdebstrap --variant=extract --skip=check/empty \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='APT::Install-Recommends "false"' \
	--include=linux-image-cloud-amd64,busybox-static,kmod,openvpn \
	--setup-hook='mkdir -p "$1/etc/apt/preferences.d"
		printf "Package: linux-* openvpn\nPin: release n=trixie-backports\nPin-Priority: 990\n" >"$1/etc/apt/preferences.d/backports"' \
	trixie "$tmp/packages" \
	"deb $mirror trixie main" \
	"deb $mirror trixie-backports main"

# Newer packages keep everything below /usr/lib/modules, older ones the kernel in /boot.
modules=$(find "$tmp/packages" -xdev -type d -path '*/lib/modules/*' -prune | head -n1)
version=$(basename "$modules")
cp "$(find "$tmp/packages" -xdev \( -path "*/boot/vmlinuz-$version" -o -path "*/modules/$version/vmlinuz" \) | head -n1)" "$tmp/vmlinuz"

root=$tmp/root
mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,out,job,lib/modules}
busybox=$(find "$tmp/packages" -xdev -type f -path '*/bin/busybox' | head -n1)
install -m 755 "$busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
cp -a "$modules" "$root/lib/modules/$version"
rm -rf "$root/lib/modules/$version"/{build,source,vmlinuz,config,System.map}
# The dependencies' lists are made by a maintainer script, and busybox reads no compressed modules.
find "$root/lib/modules" -name '*.ko.xz' -exec unxz {} +
"$busybox" depmod -b "$root" "$version"

# OpenVPN, the libraries it loads and their loader, at the paths that are compiled into it.
find_file() { find "$tmp/packages" -xdev -path "*/$1" \( -type f -o -type l \) | head -n1; }
loader=$(find_file 'ld-linux-x86-64.so.2')
openvpn=$(find_file 'sbin/openvpn')
install -D -m 755 "$loader" "$root/lib64/ld-linux-x86-64.so.2"
install -D -m 755 "$openvpn" "$root/usr/sbin/openvpn"
mkdir -p "$root/usr/lib/x86_64-linux-gnu"
"$loader" --library-path "$(dirname "$(find_file 'x86_64-linux-gnu/libc.so.6')")" --list "$openvpn" |
	sed -n "s|.* => \($tmp/packages/[^ ]*\) .*|\1|p" |
	xargs -r cp -L -t "$root/usr/lib/x86_64-linux-gnu"

# What the job needs, with everything that depends on, and all ciphers: the module asks for its own by name when the
# first key is installed. The rest of the modules stays behind.
wanted=(ovpn tun veth wireguard virtio_pci virtio_console)
find_module() {
	find "$root/lib/modules/$version" -name "$(sed 's/[-_]/[-_]/g' <<<"$1").ko" | head -n1
}
keep=$(mktemp)
keep_module() {
	local path=${1#"$root/lib/modules/$version/"}
	sed -n "s|^$path:||p" "$root/lib/modules/$version/modules.dep" | tr ' ' '\n' >>"$keep"
	echo "$path" >>"$keep"
}
for name in "${wanted[@]}"; do
	path=$(find_module "$name")
	[ -n "$path" ] || continue # built into the kernel, or under another name in this version
	keep_module "$path"
done
while read -r path; do
	keep_module "$path"
done < <(find "$root/lib/modules/$version" -path '*/crypto/*.ko')
(cd "$root/lib/modules/$version" && find . -name '*.ko' | sed 's|^\./||' | sort | comm -23 - <(sort -u "$keep") | xargs -r rm -f)
rm -f "$keep"
find "$root/lib/modules" -type d -empty -delete
"$busybox" depmod -b "$root" "$version"
[ -n "$(find_module ovpn)" ] || {
	echo "oracle: kernel $version has no ovpn module" >&2
	exit 1
}

cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/usr/sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /out
echo /bin/modprobe >/proc/sys/kernel/modprobe
mkdir -p /run/netns
for module in virtio_pci virtio_console ovpn tun veth wireguard; do
	modprobe "$module" 2>/dev/null
done
ip link set lo up
mkdir -p /dev/net
[ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200
port() {
	for name in /sys/class/virtio-ports/*/name; do
		[ "$(cat "$name")" = "$1" ] && echo "/dev/$(basename "$(dirname "$name")")"
	done
}
output=$(port oracle)
terminal=$(port terminal)
cd /job
echo "oracle: the job begins" >/dev/console
if [ -x /job/run ]; then
	if [ -n "$terminal" ]; then
		/job/run >"$terminal" 2>&1 </dev/null
	else
		/job/run >/out/stdout 2>/out/stderr </dev/null
	fi
	echo $? >/out/status
fi
uname -r >/out/kernel
dmesg >/out/dmesg
cd /out
[ -n "$output" ] && tar cf - . >"$output"
sync
echo o >/proc/sysrq-trigger
sleep 60
INIT
chmod 755 "$root/init"

(cd "$root" && find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --quiet --null --create --format=newc --owner=0:0 >"$tmp/initrd")
echo "$version" >"$tmp/version"
echo "$want" >"$tmp/.oracle"
rm -rf --one-file-system "$tmp/packages" "$root"
rm -rf --one-file-system "$dir"
mv "$tmp" "$dir"
echo "oracle: kernel $version"
