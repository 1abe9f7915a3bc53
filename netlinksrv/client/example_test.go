package client_test

import (
	"fmt"
	"log"

	"ovpn-go/netlinksrv/client"
)

// A controller watches its peers. It works with the kernel's module as it is, and under "ovpn-go exec" without.
func Example() {
	monitor, err := client.OpenMonitor()
	if err != nil {
		log.Fatal(err)
	}
	defer monitor.Close()
	conn, err := client.Dial()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	link, err := conn.Link("tun0")
	if err != nil {
		log.Fatal(err)
	}
	peers, err := conn.Peers(link.Index)
	if err != nil {
		log.Fatal(err)
	}
	for _, peer := range peers {
		fmt.Println(peer.ID, peer.Remote, peer.Link.RxBytes)
	}
	for {
		event, err := monitor.Next()
		if err != nil {
			log.Fatal(err)
		}
		if event.Kind == client.PeerDeleted {
			fmt.Println(event.PeerID, "is gone:", event.Reason)
		}
	}
}
