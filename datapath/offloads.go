package datapath

import "ovpn-go/tun"

// Offloads says what helps a device to move many packets at a time.
type Offloads struct {
	// Read and Write are the super-frames that the kernel hands out and gets. RefusedFrames counts those that it
	// did not accept; their packets went one by one.
	Read, Write   tun.Features
	RefusedFrames uint64
	// GSO is whether the kernel cuts batches of datagrams: "on", "off", or "uneven", only those whose last one is
	// shorter.
	GSO string
	// Sockets is about the UDP sockets of clients that have peers.
	Sockets []SocketOffloads
}

// SocketOffloads is about one client's UDP socket.
type SocketOffloads struct {
	LocalPort uint16
	// GRO: the kernel joins what arrives.
	GRO bool
	// OneByOne counts the peers to which the kernel was seen to refuse batches, of all datagrams or of long ones.
	OneByOne int
}

// Offloads describes the device as it is now. It is empty when the device is gone.
func (d *Device) Offloads() (o Offloads) {
	_ = d.do(func() {
		o.GSO = d.gso.String()
		o.Write = d.workers[0].queue.Features()
		o.Read = o.Write
		if ifc, ok := d.link.(*tun.Device); ok {
			o.Read = ifc.Features()
		}
		for _, w := range d.workers {
			o.RefusedFrames += w.rx.coalesce.Stats().Refused
		}
		at := map[*udpSocket]int{}
		for _, p := range d.table.All() {
			tr := transportOf(p)
			if tr.udp == nil {
				continue
			}
			i, ok := at[tr.udp]
			if !ok {
				i = len(o.Sockets)
				at[tr.udp] = i
				o.Sockets = append(o.Sockets, SocketOffloads{LocalPort: tr.udp.info.LocalPort, GRO: tr.udp.assist != nil})
			}
			if limit, _ := tr.gso.load(); limit != 0 {
				o.Sockets[i].OneByOne++
			}
		}
	})
	return o
}
