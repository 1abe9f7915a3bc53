package netlinksrv

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/datapath"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// ifinfo is what a link message says besides its attributes.
type ifinfo struct {
	index, flags, change uint32
}

func routeMessage(kind, flags uint16, info ifinfo, fields ...field) []byte {
	var b builder
	start := b.message(header{kind: kind, flags: flags, seq: testSeq})
	b.buf = append(b.buf, make([]byte, 4)...)
	b.buf = nativeEndian.AppendUint32(b.buf, info.index)
	b.buf = nativeEndian.AppendUint32(b.buf, info.flags)
	b.buf = nativeEndian.AppendUint32(b.buf, info.change)
	for _, f := range fields {
		f(&b)
	}
	b.endMessage(start)
	return b.buf
}

// fplain is a nest without NLA_F_NESTED, as rtnetlink clients send them.
func fplain(number uint16, fields ...field) field {
	return func(b *builder) {
		start := b.nest(number)
		for _, f := range fields {
			f(b)
		}
		b.endNest(start)
	}
}

func ftext(number uint16, s string) field { return func(b *builder) { b.text(number, s) } }

func fkind(kind string, more ...field) field {
	return fplain(unix.IFLA_LINKINFO, append([]field{ftext(unix.IFLA_INFO_KIND, kind)}, more...)...)
}

func fmode(mode ...byte) field { return fplain(unix.IFLA_INFO_DATA, fraw(1, mode...)) }

const createFlags = requestFlags | unix.NLM_F_CREATE | unix.NLM_F_EXCL

// made is what a test server was told to make.
type made struct {
	Name  string
	Index int
	Mode  peers.Mode
	MTU   int
	// Settings is the follow-up request, if there was one.
	Settings []byte
}

// routeServer is a server whose devices are fake, and what it makes.
func routeServer(t *testing.T) (*Server, *made) {
	t.Helper()
	s := testServer(t)
	got := &made{}
	s.newDevice = func(cfg datapath.Config) (device, error) {
		*got = made{Name: cfg.Name, Index: cfg.Index, Mode: cfg.Mode, MTU: cfg.MTU}
		switch cfg.Name {
		case "taken":
			return nil, fmt.Errorf("open tun %q: %w", cfg.Name, unix.EEXIST)
		case "broken":
			return nil, fmt.Errorf("open /dev/net/tun: %w", unix.EACCES)
		case "odd":
			return nil, errors.New("no errno")
		}
		return &fakeDevice{
			name: cfg.Name, ifindex: testIfindex, ns: homeID(t), mode: cfg.Mode, notify: cfg.Notify, done: make(chan struct{}),
		}, nil
	}
	s.configureLink = func(_ *netns.NS, body []byte) error {
		got.Settings = body
		return nil
	}
	return s, got
}

func TestRouteCreate(t *testing.T) {
	create := func(fields ...field) []byte { return routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{}, fields...) }
	name := ftext(unix.IFLA_IFNAME, "ovpn-test0")
	for _, tt := range []struct {
		name      string
		req       []byte
		powerless bool
		want      Verdict
		made      made
	}{
		{"OpenVPN client", create(name, fkind("ovpn", fmode(0))), false, Acknowledge, made{Name: "ovpn-test0"}},
		{"OpenVPN server", create(name, fkind("ovpn", fmode(1))), false, Acknowledge, made{Name: "ovpn-test0", Mode: peers.MP}},
		{"iproute2: kind without NUL", create(name, fplain(unix.IFLA_LINKINFO, fraw(unix.IFLA_INFO_KIND, []byte("ovpn")...))), false,
			Acknowledge, made{Name: "ovpn-test0"}},
		{"nests with NLA_F_NESTED", create(name, fnest(unix.IFLA_LINKINFO, ftext(unix.IFLA_INFO_KIND, "ovpn"),
			fnest(unix.IFLA_INFO_DATA, fraw(1, 1)))), false, Acknowledge, made{Name: "ovpn-test0", Mode: peers.MP}},
		{"no name", create(fkind("ovpn")), false, Acknowledge, made{Name: "ovpn%d"}},
		{"pattern", create(ftext(unix.IFLA_IFNAME, "vpn%d"), fkind("ovpn")), false, Acknowledge, made{Name: "vpn%d"}},
		{"unknown data", create(name, fkind("ovpn", fplain(unix.IFLA_INFO_DATA, fraw(9, 9), fraw(1, 1)))), false, Acknowledge,
			made{Name: "ovpn-test0", Mode: peers.MP}},
		{"mode of more than a byte", create(name, fkind("ovpn", fmode(1, 0, 0, 0))), false, Acknowledge,
			made{Name: "ovpn-test0", Mode: peers.MP}},
		{"without EXCL", routeMessage(unix.RTM_NEWLINK, requestFlags|unix.NLM_F_CREATE, ifinfo{}, name, fkind("ovpn")), false,
			Acknowledge, made{Name: "ovpn-test0"}},
		{"MTU", create(name, fkind("ovpn"), f32(unix.IFLA_MTU, 1300)), false, Acknowledge, made{Name: "ovpn-test0", MTU: 1300}},
		{"up, with txqlen", routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{0, unix.IFF_UP, unix.IFF_UP}, name, fkind("ovpn"),
			f32(unix.IFLA_TXQLEN, 50), f32(unix.IFLA_NUM_TX_QUEUES, 4)), false, Acknowledge, made{
			Name: "ovpn-test0",
			Settings: routeMessage(0, 0, ifinfo{testIfindex, unix.IFF_UP, unix.IFF_UP},
				f32(unix.IFLA_TXQLEN, 50))[headerSize:],
		}},

		{"mode out of range", create(name, fkind("ovpn", fmode(2))), false, Refuse(unix.ERANGE), made{}},
		{"mode without a value", create(name, fkind("ovpn", fmode())), false, Refuse(unix.ERANGE), made{}},
		{"first bad mode counts", create(name, fkind("ovpn", fplain(unix.IFLA_INFO_DATA, fraw(1, 2), fraw(1, 1)))), false,
			Refuse(unix.ERANGE), made{}},
		{"mode before the name", create(ftext(unix.IFLA_IFNAME, "lo"), fkind("ovpn", fmode(2))), false, Refuse(unix.ERANGE), made{}},
		{"name of another link", create(ftext(unix.IFLA_IFNAME, "lo"), fkind("ovpn")), false, Native, made{}},
		{"name taken meanwhile", create(ftext(unix.IFLA_IFNAME, "taken"), fkind("ovpn")), false, Native, made{Name: "taken"}},
		{"MTU too small", create(name, fkind("ovpn"), f32(unix.IFLA_MTU, 67)), false, Refuse(unix.EINVAL), made{}},
		{"MTU too large", create(name, fkind("ovpn"), f32(unix.IFLA_MTU, 65452)), false, Refuse(unix.EINVAL), made{}},
		{"MTU too short", create(name, fkind("ovpn", fmode(2)), fraw(unix.IFLA_MTU, 1, 2)), false, Native, made{}},
		{"MTU with bytes behind", create(name, fkind("ovpn"), fraw(unix.IFLA_MTU, 0x14, 5, 0, 0, 9, 9)), false, Acknowledge,
			made{Name: "ovpn-test0", MTU: 1300}},
		{"hardware addresses", create(name, fkind("ovpn"), fraw(unix.IFLA_ADDRESS, 1, 2, 3, 4, 5, 6), fraw(unix.IFLA_BROADCAST, 1)), false,
			Acknowledge, made{Name: "ovpn-test0"}},
		{"bad name", create(ftext(unix.IFLA_IFNAME, "a/b"), fkind("ovpn")), false, Refuse(unix.EINVAL), made{}},
		{"empty name", create(ftext(unix.IFLA_IFNAME, ""), fkind("ovpn")), false, Refuse(unix.EINVAL), made{}},
		{"name too long", create(ftext(unix.IFLA_IFNAME, "sixteen-letters-"), fkind("ovpn")), false, Native, made{}},
		{"IFLA_MAP", create(name, fkind("ovpn"), fraw(unix.IFLA_MAP, make([]byte, 32)...)), false, Refuse(unix.EOPNOTSUPP), made{}},
		{"no device", create(ftext(unix.IFLA_IFNAME, "broken"), fkind("ovpn")), false, Refuse(unix.EACCES), made{Name: "broken"}},
		{"no device, no errno", create(ftext(unix.IFLA_IFNAME, "odd"), fkind("ovpn")), false, Refuse(unix.EIO), made{Name: "odd"}},
		{"no right", create(name, fkind("ovpn")), true, Native, made{}},
		{"no right, bad mode", create(name, fkind("ovpn", fmode(2))), true, Native, made{}},
		{"kind of the module that came before", create(name, fkind("ovpn-dco", fmode(1))), false, Acknowledge, made{Name: "ovpn-test0", Mode: peers.MP}},
		{"other kind", create(name, fkind("ovpn-vpn")), false, Native, made{}},
		{"no kind", create(name), false, Native, made{}},
		{"no CREATE", routeMessage(unix.RTM_NEWLINK, requestFlags, ifinfo{}, name, fkind("ovpn")), false, Native, made{}},
		{"given index", routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{index: 1 << 20}, name, fkind("ovpn")), false, Acknowledge,
			made{Name: "ovpn-test0", Index: 1 << 20}},
		{"index of another link", routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{index: 1}, name, fkind("ovpn")), false, Native, made{}},
		{"given index, taken name", routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{index: 1 << 20}, ftext(unix.IFLA_IFNAME, "taken"),
			fkind("ovpn")), false, Refuse(unix.EEXIST), made{Name: "taken", Index: 1 << 20}},
		{"negative index", routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{index: 1 << 31}, name, fkind("ovpn")), false, Native, made{}},
		{"no queue", create(name, fkind("ovpn"), f32(unix.IFLA_NUM_TX_QUEUES, 0)), false, Refuse(unix.EINVAL), made{}},
		{"too many queues", create(name, fkind("ovpn"), f32(unix.IFLA_NUM_RX_QUEUES, 4097)), false, Refuse(unix.EINVAL), made{}},
		{"no REQUEST", routeMessage(unix.RTM_NEWLINK, 0, ifinfo{}, name, fkind("ovpn")), false, Native, made{}},
		{"not alone", slices.Concat(create(name, fkind("ovpn")), routeMessage(unix.RTM_GETLINK, requestFlags, ifinfo{})), false, Native, made{}},
		{"namespace of no descriptor", create(name, fkind("ovpn"), f32(unix.IFLA_NET_NS_FD, noFD)), false, Refuse(unix.EBADF), made{}},
		{"namespace that is none", create(name, fkind("ovpn"), f32(unix.IFLA_NET_NS_FD, plainFD)), false, Refuse(unix.EINVAL), made{}},
		{"namespace of no process", create(name, fkind("ovpn"), f32(unix.IFLA_NET_NS_PID, 1<<30)), false, Refuse(unix.ESRCH), made{}},
		{"namespace by id", create(name, fkind("ovpn"), f32(unix.IFLA_TARGET_NETNSID, 4000)), false, Refuse(unix.EINVAL), made{}},
		{"link in a namespace by id", create(name, fkind("ovpn"), f32(unix.IFLA_LINK_NETNSID, 4000)), false, Refuse(unix.EINVAL), made{}},
		{"segments too large", create(name, fkind("ovpn"), f32(unix.IFLA_GSO_MAX_SIZE, 65537)), false, Refuse(unix.EINVAL), made{}},
		{"queue length too large", create(name, fkind("ovpn"), f32(unix.IFLA_TXQLEN, 32768)), false, Refuse(unix.ERANGE), made{}},
		{"queues in a byte", create(name, fkind("ovpn"), fraw(unix.IFLA_NUM_TX_QUEUES, 1)), false, Native, made{}},
		{"own namespace by process", create(name, fkind("ovpn"), f32(unix.IFLA_NET_NS_PID, uint32(os.Getpid()))), false, Acknowledge,
			made{Name: "ovpn-test0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, got := routeServer(t)
			task := newTask(t)
			task.powerless = tt.powerless
			if v := s.Route(task, s.home, tt.req); v != tt.want {
				t.Errorf("verdict %v, want %v", v, tt.want)
			}
			if diff := cmp.Diff(tt.made, *got); diff != "" {
				t.Errorf("device (-want +got):\n%s", diff)
			}
			if made := s.linkAt(s.home.ID(), testIfindex) != nil; made != (tt.want == Acknowledge) {
				t.Errorf("link is there: %v", made)
			}
		})
	}
}

// TestRouteCreateUndone: a link that can't be made as it was asked for is not made at all, nor one whose creator ends before it is made.
func TestRouteCreateUndone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		happen func(s *Server, task *fakeTask)
		want   Verdict
	}{
		{"settings are refused", func(s *Server, _ *fakeTask) {
			s.configureLink = func(*netns.NS, []byte) error { return unix.EADDRNOTAVAIL }
		}, Refuse(unix.EADDRNOTAVAIL)},
		{"the creator ends meanwhile", func(s *Server, task *fakeTask) {
			make := s.newDevice
			s.newDevice = func(cfg datapath.Config) (device, error) {
				task.gone = true
				return make(cfg)
			}
		}, Refuse(unix.ESRCH)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := routeServer(t)
			task := newTask(t)
			tt.happen(s, task)
			req := routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{0, unix.IFF_UP, unix.IFF_UP}, fkind("ovpn"))
			if v := s.Route(task, s.home, req); v != tt.want {
				t.Errorf("verdict %v, want %v", v, tt.want)
			}
			s.watches.Wait()
			if s.hasLinks(s.home.ID()) {
				t.Error("the link is still there")
			}
		})
	}
}

// TestRouteOthers has everything but the making of links. The one link has index 7.
func TestRouteOthers(t *testing.T) {
	const dump = requestFlags | unix.NLM_F_DUMP
	link := func(kind, flags uint16, index uint32, fields ...field) []byte {
		return routeMessage(kind, flags, ifinfo{index: index}, fields...)
	}
	mtu := func(v uint32) field { return f32(unix.IFLA_MTU, v) }
	getAll := link(unix.RTM_GETLINK, dump, 0)
	short := slices.Clone(getAll[:headerSize+1])
	nativeEndian.PutUint32(short, headerSize+1)
	for _, tt := range []struct {
		name      string
		req       []byte
		powerless bool
		none      bool // without a link
		want      Verdict
		teardown  bool
	}{
		{"dump", getAll, false, false, Relay, false},
		{"dump with a short header", short, false, false, Relay, false},
		{"dump without links", getAll, false, true, Native, false},
		{"dump of the kind ovpn without links", link(unix.RTM_GETLINK, dump, 0, fkind("ovpn")), false, true, Relay, false},
		{"dump of another kind without links", link(unix.RTM_GETLINK, dump, 0, fkind("tun")), false, true, Native, false},
		{"get by our index", link(unix.RTM_GETLINK, requestFlags, testIfindex), false, false, Relay, false},
		{"get by another index", link(unix.RTM_GETLINK, requestFlags, otherLink), false, false, Native, false},
		{"get by name", link(unix.RTM_GETLINK, requestFlags, 0, ftext(unix.IFLA_IFNAME, "lo")), false, false, Relay, false},
		{"get without links", link(unix.RTM_GETLINK, requestFlags, testIfindex), false, true, Native, false},
		{"get without a right", link(unix.RTM_GETLINK, requestFlags, testIfindex), true, false, Relay, false},
		{"delete", link(unix.RTM_DELLINK, requestFlags, testIfindex), false, false, Native, true},
		{"delete without a right", link(unix.RTM_DELLINK, requestFlags, testIfindex), true, false, Native, false},
		{"delete another", link(unix.RTM_DELLINK, requestFlags, otherLink), false, false, Native, false},
		{"delete by another name", link(unix.RTM_DELLINK, requestFlags, 0, ftext(unix.IFLA_IFNAME, "lo")), false, false, Native, false},
		{"delete and get", slices.Concat(link(unix.RTM_DELLINK, requestFlags, testIfindex), getAll), false, false, Relay, true},
		{"MTU", link(unix.RTM_NEWLINK, requestFlags, testIfindex, mtu(1500)), false, false, Native, false},
		{"MTU too large", link(unix.RTM_NEWLINK, requestFlags, testIfindex, mtu(65500)), false, false, Refuse(unix.EINVAL), false},
		{"MTU too large, SETLINK", link(unix.RTM_SETLINK, requestFlags, testIfindex, mtu(65500)), false, false, Refuse(unix.EINVAL), false},
		{"MTU too large without a right", link(unix.RTM_NEWLINK, requestFlags, testIfindex, mtu(65500)), true, false, Native, false},
		{"MTU of another", link(unix.RTM_NEWLINK, requestFlags, otherLink, mtu(65500)), false, false, Native, false},
		{"addresses", link(unix.RTM_GETADDR, dump, 0), false, false, Native, false},
		{"nothing", nil, false, false, Native, false},
		{"rubbish", []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17}, false, false, Native, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := testServer(t)
			d := &fakeDevice{}
			if !tt.none {
				d = addDevice(t, s, testIfindex, peers.P2P)
			}
			task := newTask(t)
			task.powerless = tt.powerless
			if v := s.Route(task, s.home, tt.req); v != tt.want {
				t.Errorf("verdict %v, want %v", v, tt.want)
			}
			if got := slices.Contains(d.calls, "Teardown"); got != tt.teardown {
				t.Errorf("peers torn down: %v", got)
			}
		})
	}
}

func TestRouteAnswer(t *testing.T) {
	littleEndian(t)
	plain := routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{})
	mode := routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{}, fkind("ovpn", fmode(2)))
	mtu := func(v uint32) []byte {
		return routeMessage(unix.RTM_NEWLINK, createFlags, ifinfo{}, f32(unix.IFLA_MTU, v))
	}
	for _, tt := range []struct {
		name  string
		req   []byte
		errno unix.Errno
		form  AnswerForm
		want  string
	}{
		{"done", plain, 0, AnswerForm{}, "24000000 0200 0001 11000000 05000000 00000000  20000000 1000 0506 11000000 00000000"},
		{"refused", plain, unix.EINVAL, AnswerForm{Cap: true, Extended: true},
			"24000000 0200 0001 11000000 05000000 eaffffff  20000000 1000 0506 11000000 00000000"},
		{"refused with echo", plain, unix.EINVAL, AnswerForm{}, `34000000 0200 0000 11000000 05000000 eaffffff
			20000000 1000 0506 11000000 00000000  00000000 00000000 00000000 00000000`},
		{"bad mode", mode, unix.ERANGE, AnswerForm{Cap: true, Extended: true}, `6c000000 0200 0003 11000000 05000000 deffffff
			3c000000 1000 0506 11000000 00000000
			1900 0100 696e7465676572206f7574206f662072616e676500 000000
			0800 0200 34000000
			2400 0480 0c00 0400 0000000000000000 0c00 0500 0100000000000000 0800 0100 02000000`},
		{"MTU too small", mtu(67), unix.EINVAL, AnswerForm{Cap: true, Extended: true}, `48000000 0200 0003 11000000 05000000 eaffffff
			28000000 1000 0506 11000000 00000000
			2100 0100 6d7475206c657373207468616e20646576696365206d696e696d756d00 000000`},
		{"MTU negative", mtu(1 << 31), unix.EINVAL, AnswerForm{Cap: true, Extended: true}, `48000000 0200 0003 11000000 05000000 eaffffff
			28000000 1000 0506 11000000 00000000
			2100 0100 6d7475206c657373207468616e20646576696365206d696e696d756d00 000000`},
		{"MTU too large", mtu(65452), unix.EINVAL, AnswerForm{Cap: true, Extended: true}, `48000000 0200 0003 11000000 05000000 eaffffff
			28000000 1000 0506 11000000 00000000
			2400 0100 6d74752067726561746572207468616e20646576696365206d6178696d756d00`},
		{"MTU is not the reason", mtu(1500), unix.EINVAL, AnswerForm{Cap: true, Extended: true},
			"24000000 0200 0001 11000000 05000000 eaffffff  28000000 1000 0506 11000000 00000000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := RouteAnswer(tt.req, 5, tt.errno, tt.form)
			if diff := cmp.Diff(hexLines([][]byte{unhex(t, tt.want)}), hexLines([][]byte{got})); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
	if got := RouteAnswer([]byte{1, 2, 3}, 5, 0, AnswerForm{}); got != nil {
		t.Errorf("answer to rubbish: %x", got)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"tun0": true, "ovpn%d": true, "a%db": true, "Ü": true, "%d": true,
		"": false, ".": false, "..": false, "a/b": false, "a:b": false, "a b": false, "a\tb": false, "a\xa0": false,
		"a%": false, "a%s": false, "%d%d": false, "a%d%": false,
	} {
		if got := validName(name); got != want {
			t.Errorf("validName(%q) = %v", name, got)
		}
	}
}

// TestLinksAreForgotten: when an interface is gone its index is not ours any more, except in what the kernel has
// still to say about it.
func TestLinksAreForgotten(t *testing.T) {
	s := testServer(t)
	d := addDevice(t, s, testIfindex, peers.MP)
	if s.linkAt(d.ns, testIfindex) == nil || !s.hasLinks(d.ns) {
		t.Fatal("the link is not there")
	}
	d.Close()
	s.watches.Wait()
	if s.linkAt(d.ns, testIfindex) != nil || s.hasLinks(d.ns) {
		t.Error("the link is still there")
	}
	if looks, ok := s.looksAt(d.ns, testIfindex); !ok || looks.mode != peers.MP {
		t.Errorf("looks %v, %v of a link that is gone, want mp", looks, ok)
	}
	if _, ok := s.looksAt(d.ns, testIfindex+1); ok {
		t.Error("a link that never was has looks")
	}
	if _, ok := s.looksAt(netns.ID{}, 0); ok {
		t.Error("an empty tombstone is taken for a link")
	}
}
