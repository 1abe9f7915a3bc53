# A round with the kernel's netlink library in C. The generator looks upwards for the source tree's root, which it knows by a
# file that is not unpacked.
mkdir /tmp/linux && cp -r /usr/src/linux/tools /usr/src/linux/Documentation /tmp/linux && touch /tmp/linux/MAINTAINERS
cd /tmp/linux/tools/net/ynl/generated
spec=../../../../Documentation/netlink/specs/ovpn.yaml
timeout 60 python3 ../pyynl/ynl_gen_c.py --mode user --header --spec $spec -o /tmp/ovpn-user.h
timeout 60 python3 ../pyynl/ynl_gen_c.py --mode user --source --spec $spec -o /tmp/ovpn-user.c
gcc -std=gnu11 -I../lib -I/tmp -o /tmp/round /tmp/ovpn-user.c ../lib/ynl.c -x c - <<'PROGRAM'
#include <arpa/inet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/ovpn.h>
#include "ovpn-user.h"
#include "ynl.h"

static struct ynl_sock *ys;

static void check(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "%s: %s\n", what, ys ? ys->err.msg : "");
	exit(1);
}

int main(void)
{
	unsigned int index = if_nametoindex("tun0");
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(7777) };
	unsigned char key[32] = { 1 }, tail[8] = { 2 };
	struct ynl_error failure;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	check(index && fd >= 0 && !bind(fd, (void *)&any, sizeof(any)), "socket");
	ys = ynl_sock_create(&ynl_ovpn_family, &failure);
	if (!ys) {
		fprintf(stderr, "create: %s\n", failure.msg);
		return 1;
	}
	check(!ynl_subscribe(ys, "peers"), "subscribe");

	struct ovpn_peer_new_req *new = ovpn_peer_new_req_alloc();
	ovpn_peer_new_req_set_ifindex(new, index);
	ovpn_peer_new_req_set_peer_id(new, 3);
	ovpn_peer_new_req_set_peer_remote_ipv4(new, htonl(INADDR_LOOPBACK));
	ovpn_peer_new_req_set_peer_remote_port(new, htons(9));
	ovpn_peer_new_req_set_peer_socket(new, fd);
	check(!ovpn_peer_new(ys, new), "peer-new");

	struct ovpn_key_new_req *install = ovpn_key_new_req_alloc();
	ovpn_key_new_req_set_ifindex(install, index);
	ovpn_key_new_req_set_keyconf_peer_id(install, 3);
	ovpn_key_new_req_set_keyconf_slot(install, OVPN_KEY_SLOT_PRIMARY);
	ovpn_key_new_req_set_keyconf_key_id(install, 5);
	ovpn_key_new_req_set_keyconf_cipher_alg(install, OVPN_CIPHER_ALG_AES_GCM);
	ovpn_key_new_req_set_keyconf_encrypt_dir_cipher_key(install, key, sizeof(key));
	ovpn_key_new_req_set_keyconf_encrypt_dir_nonce_tail(install, tail, sizeof(tail));
	ovpn_key_new_req_set_keyconf_decrypt_dir_cipher_key(install, key, sizeof(key));
	ovpn_key_new_req_set_keyconf_decrypt_dir_nonce_tail(install, tail, sizeof(tail));
	check(!ovpn_key_new(ys, install), "key-new");

	struct ovpn_key_get_req *which = ovpn_key_get_req_alloc();
	ovpn_key_get_req_set_ifindex(which, index);
	ovpn_key_get_req_set_keyconf_peer_id(which, 3);
	ovpn_key_get_req_set_keyconf_slot(which, OVPN_KEY_SLOT_PRIMARY);
	struct ovpn_key_get_rsp *found = ovpn_key_get(ys, which);
	check(found && found->keyconf.key_id == 5, "key-get");

	struct ovpn_peer_set_req *set = ovpn_peer_set_req_alloc();
	ovpn_peer_set_req_set_ifindex(set, index);
	ovpn_peer_set_req_set_peer_id(set, 3);
	ovpn_peer_set_req_set_peer_keepalive_interval(set, 60);
	ovpn_peer_set_req_set_peer_keepalive_timeout(set, 120);
	check(!ovpn_peer_set(ys, set), "peer-set");

	struct ovpn_peer_get_req *get = ovpn_peer_get_req_alloc();
	ovpn_peer_get_req_set_ifindex(get, index);
	ovpn_peer_get_req_set_peer_id(get, 3);
	struct ovpn_peer_get_rsp *peer = ovpn_peer_get(ys, get);
	check(peer && peer->peer.keepalive_timeout == 120, "peer-get");
	ovpn_peer_get_req_set_peer_id(get, 4);
	check(!ovpn_peer_get(ys, get), "peer-get of none");

	struct ovpn_peer_get_req_dump dump;
	memset(&dump, 0, sizeof(dump));
	ovpn_peer_get_req_dump_set_ifindex(&dump, index);
	int peers = 0;
	struct ovpn_peer_get_list *list = ovpn_peer_get_dump(ys, &dump);
	check(list != NULL, "dump");
	ynl_dump_foreach(list, item)
		peers += item->peer.id == 3;
	check(peers == 1, "peers in the dump");

	struct ovpn_peer_del_req *del = ovpn_peer_del_req_alloc();
	ovpn_peer_del_req_set_ifindex(del, index);
	ovpn_peer_del_req_set_peer_id(del, 3);
	check(!ovpn_peer_del(ys, del), "peer-del");

	/* The notification came before the acknowledgement, or comes now. */
	int tries = 0;
	while (!ynl_has_ntf(ys) && tries++ < 100) {
		ynl_ntf_check(ys);
		usleep(100000);
	}
	struct ynl_ntf_base_type *ntf = ynl_ntf_dequeue(ys);
	check(ntf && ntf->cmd == OVPN_CMD_PEER_DEL_NTF, "notification");
	puts("the round is done");
	return 0;
}
PROGRAM
ip link set lo up
ip link add tun0 type ovpn
/tmp/round
ip link del tun0
