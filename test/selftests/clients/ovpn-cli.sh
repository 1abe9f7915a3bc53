# A round with the selftests' client, in their directory: both ends of a tunnel, with notifications.
ip netns add a && ip netns add b
ip link add v0 netns a type veth peer name v1 netns b
ip -n a addr add 10.10.1.1/24 dev v0 && ip -n a link set v0 up
ip -n b addr add 10.10.1.2/24 dev v1 && ip -n b link set v1 up
a="ip netns exec a ./ovpn-cli" b="ip netns exec b ./ovpn-cli"
$a listen_mcast >/tmp/heard 2>&1 & listener=$!
# It and the holders of sockets would outlive a round that fails.
trap 'killall ovpn-cli 2>/dev/null || true' EXIT
$a new_iface tun0 MP && $b new_iface tun1 P2P
ip -n a addr add 5.5.5.1/24 dev tun0 && ip -n a link set tun0 up
ip -n b addr add 5.5.5.2/24 dev tun1
$a new_peer tun0 7 8 1 10.10.1.2 1 5.5.5.2
$b new_peer tun1 8 7 1 10.10.1.1 1
ip -n b link set tun1 up
$a new_key tun0 7 1 0 aes 0 data64.key
$b new_key tun1 8 1 0 aes 1 data64.key
ip netns exec b ping -q -c 3 -W 5 5.5.5.1
$a get_peer tun0 7 2>&1 | tee /tmp/peer
grep -q 'Peer 7' /tmp/peer
$a get_key tun0 7 1
$a new_key tun0 7 2 1 chachapoly 0 data64.key
$a swap_keys tun0 7
$a del_key tun0 7 2
$a set_peer tun0 7 60 120
if $a get_peer tun0 9; then exit 1; fi
$a del_peer tun0 7
set +x
for i in $(seq 100); do grep -q -i 'del' /tmp/heard && break; sleep 0.1; done
set -x
grep -i 'del' /tmp/heard
$a del_iface tun0 && $b del_iface tun1
killall ovpn-cli
ip netns del a && ip netns del b
echo 'the round is done'
