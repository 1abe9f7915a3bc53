#!/usr/bin/env bash
# Builds the tree in which the kernel's own ovpn selftests run: Debian trixie, from the kernel source
# of its backports the selftests with what they use of the source, ovpn-cli compiled, and the programs
# that the scripts call. The test enters it with chroot. None of it is changed, and none of it is ours.
#
#   build.sh [DIR]    build into DIR, unless DIR already holds a tree made by this very script;
#                     without DIR into $OVPN_GO_SELFTESTS or root's cache directory
#
# The packages come from the mirror that apt on this machine is set up with.
set -euo pipefail

kernel=7.3

root=${1:-${OVPN_GO_SELFTESTS:-/var/cache/ovpn-go/selftests}}
want=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)
stamp=$root/.selftests

made() { [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; }

if made; then
	exit 0
fi
mkdir -p "$(dirname "$root")"
# Whoever comes second finds the tree made.
exec 9>"$root.lock"
flock 9
if made; then
	exit 0
fi
command -v mmdebstrap >/dev/null || {
	echo "selftests: mmdebstrap is missing; install it with: apt-get install mmdebstrap" >&2
	exit 1
}

mirror=$(apt-get indextargets --format '$(SITE)' | grep -v -e security -e 'apt$' | sort -u | head -n1)
[ -n "$mirror" ] || {
	echo "selftests: apt has no Debian mirror; run apt-get update first" >&2
	exit 1
}

# Built beside its final place and renamed, so that an interrupted build is never taken for a finished one.
tmp=$root.new
rm -rf --one-file-system "$tmp"

# linux-libc-dev comes from backports as well: ovpn-cli includes linux/ovpn.h.
include=linux-source-$kernel,linux-libc-dev,xz-utils
include=$include,gcc,libc6-dev,make,pkg-config,libnl-3-dev,libnl-genl-3-dev,libmbedtls-dev
include=$include,python3,python3-yaml,python3-jsonschema
include=$include,iproute2,iputils-ping,iperf3,tcpdump,jq,nftables,psmisc,procps
mmdebstrap --variant=minbase --skip=check/empty \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='APT::Install-Recommends "false"' \
	--include="$include" \
	--setup-hook='mkdir -p "$1/etc/apt/preferences.d"
		printf "Package: linux-*\nPin: release n=trixie-backports\nPin-Priority: 990\n" >"$1/etc/apt/preferences.d/linux"' \
	--customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/usr/share/doc "$1"/usr/share/locale' \
	trixie "$tmp" \
	"deb $mirror trixie main" \
	"deb $mirror trixie-backports main"

# Of the source only what the scripts and the makefile read, at the places where they look for it.
source=linux-source-$kernel
mkdir "$tmp/usr/src/linux"
chroot "$tmp" tar -C /usr/src/linux --strip-components=1 -xf "/usr/src/$source.tar.xz" --wildcards \
	"$source/tools/testing/selftests/lib.mk" \
	"$source/tools/testing/selftests/kselftest*" \
	"$source/tools/testing/selftests/net/lib*" \
	"$source/tools/testing/selftests/net/ovpn" \
	"$source/tools/scripts/*" \
	"$source/tools/net/ynl" \
	"$source/Documentation/netlink"
rm "$tmp/usr/src/$source.tar.xz"
chroot "$tmp" make -s -C /usr/src/linux/tools/testing/selftests/net/ovpn

# The scripts load the module and go on if that fails; here there is none to load.
ln -s /bin/true "$tmp/usr/local/sbin/modprobe"

version=$(chroot "$tmp" dpkg-query -W -f '${Version}' "linux-source-$kernel")
echo "$want" >"$tmp/.selftests"
rm -rf --one-file-system "$root"
mv "$tmp" "$root"
echo "selftests: Linux $version"
