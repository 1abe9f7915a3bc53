#!/usr/bin/env bash
# Builds the tree in which openvpn3-linux runs: its packages and the D-Bus daemon's from Debian forky, unpacked, with
# the users that they run as. The test enters it with chroot. None of it is changed.
#
#   build.sh [DIR]    build into DIR, unless DIR already holds a tree made by this very script;
#                     without DIR into $OVPN_GO_OPENVPN3 or root's cache directory
#
# The packages come from the mirror that apt on this machine is set up with.
set -euo pipefail

root=${1:-${OVPN_GO_OPENVPN3:-/var/cache/ovpn-go/openvpn3}}
want=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)
stamp=$root/.openvpn3

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
	echo "openvpn3: mmdebstrap is missing; install it with: apt-get install mmdebstrap" >&2
	exit 1
}

mirror=$(apt-get indextargets --format '$(SITE)' | grep -v -e security -e 'apt$' | sort -u | head -n1)
[ -n "$mirror" ] || {
	echo "openvpn3: apt has no Debian mirror; run apt-get update first" >&2
	exit 1
}

# Built beside its final place and renamed, so that an interrupted build is never taken for a finished one.
tmp=$root.new
rm -rf --one-file-system "$tmp"

# Unpacking is all these need: a third of the time that a tree of installed packages takes. The two of systemd's are there
# so that systemd itself is not.
mmdebstrap --variant=extract --skip=check/empty \
	--aptopt='Acquire::Check-Valid-Until "false"' \
	--aptopt='APT::Install-Recommends "false"' \
	--include=openvpn3-client,dbus,systemd-standalone-sysusers,systemd-standalone-tmpfiles \
	forky "$tmp" "deb $mirror forky main"
rm -rf "$tmp"/usr/share/doc "$tmp"/usr/share/locale

for dir in bin sbin lib lib64; do
	[ -e "$tmp/$dir" ] || ln -s "usr/$dir" "$tmp/$dir"
done
mkdir -p "$tmp"/{proc,sys,run,mnt,root} "$tmp"/var/lib/openvpn3/configs
cat >"$tmp/etc/passwd" <<-END
	root:x:0:0:root:/root:/bin/sh
	messagebus:x:990:990:D-Bus:/:/usr/sbin/nologin
	_openvpn:x:991:991:OpenVPN 3:/:/usr/sbin/nologin
END
cut -d: -f1-3 "$tmp/etc/passwd" | sed 's/$/:/' >"$tmp/etc/group"
# As the packages set it up: of the launch helper, that the daemon may start services as other users, and nobody else may.
chown -R 991:991 "$tmp/var/lib/openvpn3"
chown 0:990 "$tmp/usr/lib/dbus-1.0/dbus-daemon-launch-helper"
chmod 4754 "$tmp/usr/lib/dbus-1.0/dbus-daemon-launch-helper"
# Services of systemd's that nobody would answer for: the clients of openvpn3-linux ask them again and again, for half a minute.
rm -f "$tmp"/usr/share/dbus-1/system-services/org.freedesktop.*

version=$(chroot "$tmp" openvpn3 version | head -n1)
case $version in
OpenVPN3/Linux*) ;;
*)
	echo "openvpn3: expected openvpn3-linux, the mirror has: $version" >&2
	exit 1
	;;
esac
echo "$want" >"$tmp/.openvpn3"
rm -rf --one-file-system "$root"
mv "$tmp" "$root"
echo "openvpn3: $version"
