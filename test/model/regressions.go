package model

// Row is a sequence with the rule that it shows.
type Row struct {
	Name string
	Ops  []Op
}

// Regressions are sequences that the program, or the model, has once been wrong about.
var Regressions = []Row{
	{"a connection is free again when its peer is replaced", []Op{
		{Do: LinkNew},
		{Do: LinkUp},
		{Do: SocketOpen, Socket: 2},
		{Do: SocketOpen, Socket: 4},
		{Do: PeerNew, Peer: 2, Socket: 4},
		{Do: PeerNew, Peer: 3, Socket: 2, Remote: 4},
		{Do: LinkNew, Device: 1, MP: true},
		{Do: PeerNew, Device: 1, Peer: 2, Socket: 4, VPN4: "10.8.0.1"},
	}},
	{"a remote address for a connection in use is the first mistake", []Op{
		{Do: LinkNew, MP: true},
		{Do: SocketOpen, Socket: 4},
		{Do: PeerNew, Peer: 4, Socket: 4, VPN4: "10.8.0.1"},
		{Do: PeerNew, Peer: 5, Socket: 4, Remote: 1, VPN4: "10.8.0.2"},
	}},
	{"a connection is free again when its peer is deleted", []Op{
		{Do: LinkNew},
		{Do: LinkUp},
		{Do: SocketOpen, Socket: 4},
		{Do: PeerNew, Peer: 2, Socket: 4},
		{Do: PeerDel, Peer: 2},
		{Do: PeerNew, Peer: 2, Socket: 4},
		{Do: LinkDel},
		{Do: LinkNew},
		{Do: PeerNew, Peer: 2, Socket: 4},
	}},
	{"a connection that the other end has finished is the client's to end, whatever becomes of the link", []Op{
		{Do: LinkNew, MP: true},
		{Do: SocketOpen, Socket: 4},
		{Do: PeerNew, Peer: 1, Socket: 4, VPN4: "10.8.0.1"},
		{Do: Finish, Socket: 4},
		{Do: LinkDel},
		{Do: ControlOut, Socket: 4, Remote: 1},
		{Do: SocketClose, Socket: 4},
	}},
}
