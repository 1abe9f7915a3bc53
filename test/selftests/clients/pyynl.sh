# A round with the kernel's netlink client in Python, with one process for every request.
ynl=/usr/src/linux/tools/net/ynl/pyynl/cli.py specs=/usr/src/linux/Documentation/netlink/specs
ovpn() { python3 -u $ynl --spec $specs/ovpn.yaml --output-json "$@"; }
ip link set lo up
python3 $ynl --spec $specs/rt-link.yaml --create --excl --do newlink \
	--json '{"ifname": "tun0", "linkinfo": {"kind": "ovpn", "data": {"mode": "mp"}}}'
ifindex=$(cat /proc/net/dev_snmp6/tun0 2>/dev/null | awk '$1 == "ifIndex" { print $2 }')
[ -n "$ifindex" ] || ifindex=$(ip -o link show tun0 | cut -d: -f1)
ovpn --subscribe peers --duration 30 >/tmp/heard 2>/tmp/errors & listener=$!
# Descriptor 5 becomes the transport socket, which every process inherits.
cat >/tmp/round.sh <<'SCRIPT'
set -e
key='"cipher-key": "'$(printf '%064d' 7)'", "nonce-tail": "'$(printf '%016d' 7)'"'
on='"ifindex": '$ifindex
ovpn --do peer-new --json "{$on, \"peer\": {\"id\": 3, \"remote-ipv4\": \"127.0.0.1\", \"remote-port\": 9, \"socket\": 5, \"vpn-ipv4\": \"10.8.0.3\"}}"
ovpn --do key-new --json "{$on, \"keyconf\": {\"peer-id\": 3, \"slot\": \"primary\", \"key-id\": 1, \"cipher-alg\": \"aes-gcm\", \"encrypt-dir\": {$key}, \"decrypt-dir\": {$key}}}"
ovpn --do key-get --json "{$on, \"keyconf\": {\"peer-id\": 3, \"slot\": \"primary\"}}" | tee /tmp/key
grep -q '"key-id": 1' /tmp/key
ovpn --do peer-set --json "{$on, \"peer\": {\"id\": 3, \"keepalive-interval\": 60, \"keepalive-timeout\": 120}}"
ovpn --do peer-get --json "{$on, \"peer\": {\"id\": 3}}" | tee /tmp/peer
grep -q '"keepalive-timeout": 120' /tmp/peer
ovpn --dump peer-get --json "{$on}" | tee /tmp/peers
grep -q '10.8.0.3' /tmp/peers
ovpn --do key-swap --json "{$on, \"keyconf\": {\"peer-id\": 3}}"
ovpn --do key-del --json "{$on, \"keyconf\": {\"peer-id\": 3, \"slot\": \"secondary\"}}"
if ovpn --do peer-get --json "{$on, \"peer\": {\"id\": 4}}"; then exit 1; fi
ovpn --do peer-del --json "{$on, \"peer\": {\"id\": 3}}"
SCRIPT
export ynl specs ifindex
export -f ovpn
python3 -c '
import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 7777))
os.dup2(s.fileno(), 5, inheritable=True)
os.execvp("bash", ["bash", "/tmp/round.sh"])'
set +x
for i in $(seq 100); do grep -q peer-del-ntf /tmp/heard && break; sleep 0.1; done
set -x
kill $listener || true
wait $listener || true
cat /tmp/heard /tmp/errors
grep -q peer-del-ntf /tmp/heard
python3 $ynl --spec $specs/rt-link.yaml --do dellink --json "{\"ifi-index\": $ifindex}"
echo 'the round is done'
