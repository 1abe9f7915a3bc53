# A round with iproute2, which handles links; 6.15 has no word for the mode.
ip -V
timeout 60 ip monitor link >/tmp/heard & monitor=$!
for i in $(seq 100); do
	ip link add probe type ovpn
	ip link del probe
	grep -q probe /tmp/heard && break
	sleep 0.1
done
grep -q probe /tmp/heard
ip link add tun0 mtu 1400 type ovpn
ip -d link show tun0 | tee /tmp/shown
grep -q 'ovpn' /tmp/shown
grep -q 'mtu 1400' /tmp/shown
grep -q 'maxmtu 65451' /tmp/shown
ip link show type ovpn | grep tun0
ip -d -j link show tun0 | jq -e '.[0].linkinfo.info_kind == "ovpn"'
if ip link add tun0 type ovpn; then exit 1; fi
if ip link set tun0 mtu 67; then exit 1; fi
ip addr add 10.8.0.1/24 dev tun0
ip link set tun0 up
ip route add 10.9.0.0/16 via 10.8.0.2 dev tun0
ip -s link show tun0
ip link set tun0 down
ip link set tun0 name tun9
ip -d link show tun9 | grep ovpn
ip link del tun9
if ip link show tun9; then exit 1; fi
genl ctrl get name ovpn | tee /tmp/family
grep -q peers /tmp/family
kill $monitor
echo 'the round is done'
