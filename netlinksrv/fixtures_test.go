package netlinksrv

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/crypto"
	"ovpn-go/datapath"
	"ovpn-go/netlinksrv/uapi"
	"ovpn-go/peers"
	"ovpn-go/tun/netns"
)

// Ids that the tests' servers use, those of the recorded messages.
const (
	testFamily  = 0x24
	testGroup   = 0x0f
	testIfindex = 7 // of the fake device
	otherLink   = 1 // an interface that is not ovpn
)

// fakeTask is a sender whose rights and descriptors the test chooses.
type fakeTask struct {
	powerless bool
	gone      bool
	files     map[int]*os.File
}

func (t *fakeTask) NetNS() (*netns.NS, error) { return netns.Current() }
func (t *fakeTask) PID() int                  { return os.Getpid() }
func (t *fakeTask) Waits() bool               { return !t.gone }

func (t *fakeTask) MayAdmin(*netns.NS) error {
	if t.powerless {
		return unix.EPERM
	}
	return nil
}

func (t *fakeTask) File(fd int) (*os.File, error) {
	file := t.files[fd]
	if file == nil {
		return nil, fmt.Errorf("descriptor %d: %w", fd, unix.EBADF)
	}
	dup, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dup), file.Name()), nil
}

func (t *fakeTask) Replace(inode uint64, file *os.File) error {
	for fd := range t.files {
		var st unix.Stat_t
		if err := unix.Fstat(int(t.files[fd].Fd()), &st); err != nil || st.Ino != inode {
			continue
		}
		dup, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.files[fd].Close()
		t.files[fd] = os.NewFile(uintptr(dup), file.Name())
		return nil
	}
	return fmt.Errorf("socket %d: %w", inode, unix.EBADF)
}

// Descriptors of every test task.
const (
	udpFD   = 10
	tcpFD   = 11
	rawFD   = 12 // a socket that is neither
	plainFD = 13 // not a socket
	noFD    = 99
)

func newTask(t *testing.T) *fakeTask {
	t.Helper()
	task := &fakeTask{files: map[int]*os.File{}}
	for fd, socket := range map[int][3]int{
		udpFD: {unix.AF_INET, unix.SOCK_DGRAM, 0},
		tcpFD: {unix.AF_INET, unix.SOCK_STREAM, 0},
		rawFD: {unix.AF_UNIX, unix.SOCK_DGRAM, 0},
	} {
		raw, err := unix.Socket(socket[0], socket[1]|unix.SOCK_CLOEXEC, socket[2])
		if err != nil {
			t.Fatal(err)
		}
		task.files[fd] = os.NewFile(uintptr(raw), "socket")
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	task.files[plainFD] = null
	t.Cleanup(func() {
		for _, f := range task.files {
			f.Close()
		}
	})
	return task
}

// fakeDevice is a device in memory with the rules of a real one.
type fakeDevice struct {
	name    string
	ifindex int
	ns      netns.ID
	mode    peers.Mode
	notify  func(datapath.Event)
	done    chan struct{}

	mu    sync.Mutex
	peers []*fakePeer
	fails map[string]error // by method, in place of what it would do
	calls []string
}

type fakePeer struct {
	info datapath.PeerInfo
	keys [2]crypto.KeyConfig // with Cipher CipherNone: empty
}

// called notes a call and returns the error that it is to fail with.
func (d *fakeDevice) called(method string) error {
	d.calls = append(d.calls, method)
	return d.fails[method]
}

func (d *fakeDevice) Name() string           { return d.name }
func (d *fakeDevice) Ifindex() int           { return d.ifindex }
func (d *fakeDevice) Place() (netns.ID, int) { return d.ns, d.ifindex }
func (d *fakeDevice) Mode() peers.Mode       { return d.mode }
func (d *fakeDevice) Done() <-chan struct{}  { return d.done }

func (d *fakeDevice) Close() error {
	d.Teardown()
	select {
	case <-d.done:
	default:
		close(d.done)
	}
	return nil
}

func (d *fakeDevice) Teardown() {
	d.mu.Lock()
	d.calls = append(d.calls, "Teardown")
	gone := d.peers
	d.peers = nil
	d.mu.Unlock()
	for _, p := range gone {
		d.announce(p.info.ID, peers.Teardown)
	}
}

func (d *fakeDevice) announce(id uint32, reason peers.DelReason) {
	if d.notify != nil {
		d.notify(datapath.Event{
			Kind: datapath.PeerDeleted, Ifindex: d.ifindex, NetNS: d.ns, PeerID: id, Reason: reason,
		})
	}
}

func (d *fakeDevice) find(id uint32) *fakePeer {
	for _, p := range d.peers {
		if p.info.ID == id {
			return p
		}
	}
	return nil
}

// taken reports whether another peer has either address.
func (d *fakeDevice) taken(id uint32, v4, v6 netip.Addr) bool {
	return slices.ContainsFunc(d.peers, func(p *fakePeer) bool {
		return p.info.ID != id && (v4.IsValid() && p.info.VPN4 == v4 || v6.IsValid() && p.info.VPN6 == v6)
	})
}

func (d *fakeDevice) SocketProtocol(file *os.File) (int, error) { return datapath.SocketProtocol(file) }

func (d *fakeDevice) NewPeer(cfg datapath.PeerConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.called("NewPeer"); err != nil {
		return err
	}
	proto, err := datapath.SocketProtocol(cfg.Socket)
	if err != nil {
		return err
	}
	if proto != unix.IPPROTO_UDP && proto != unix.IPPROTO_TCP {
		return &datapath.AttachError{Errno: unix.EOPNOTSUPP}
	}
	if d.mode == peers.P2P && len(d.peers) > 0 {
		old := d.peers[0]
		d.peers = nil
		d.announce(old.info.ID, peers.Teardown)
	}
	if d.find(cfg.ID) != nil {
		return peers.ErrIDInUse
	}
	if d.taken(cfg.ID, cfg.VPN4, cfg.VPN6) {
		return peers.ErrAddrInUse
	}
	info := datapath.PeerInfo{
		ID: cfg.ID, TxID: cfg.TxID, VPN4: cfg.VPN4, VPN6: cfg.VPN6, TCP: proto == unix.IPPROTO_TCP,
		Remote: cfg.Remote, ScopeID: cfg.ScopeID, Local: cfg.Local,
	}
	if cfg.Keepalive != nil {
		info.Keepalive = *cfg.Keepalive
	}
	d.peers = append(d.peers, &fakePeer{info: info})
	return nil
}

func (d *fakeDevice) SetPeer(id uint32, up datapath.PeerUpdate) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.called("SetPeer"); err != nil {
		return err
	}
	p := d.find(id)
	if p == nil {
		return peers.ErrNotFound
	}
	set := func(to *netip.Addr, addr *netip.Addr) {
		if addr != nil {
			*to = whenSet(*addr)
		}
	}
	next := p.info
	set(&next.VPN4, up.VPN4)
	set(&next.VPN6, up.VPN6)
	if d.taken(id, next.VPN4, next.VPN6) {
		return peers.ErrAddrInUse
	}
	if up.Remote.IsValid() {
		next.Remote, next.ScopeID, next.Local = up.Remote, up.ScopeID, up.Local
	}
	if up.TxID != nil {
		next.TxID = *up.TxID
	}
	if up.Keepalive != nil {
		next.Keepalive = *up.Keepalive
	}
	p.info = next
	return nil
}

func (d *fakeDevice) DeletePeer(id uint32) error {
	d.mu.Lock()
	if err := d.called("DeletePeer"); err != nil {
		d.mu.Unlock()
		return err
	}
	i := slices.IndexFunc(d.peers, func(p *fakePeer) bool { return p.info.ID == id })
	if i < 0 {
		d.mu.Unlock()
		return peers.ErrNotFound
	}
	d.peers = slices.Delete(d.peers, i, i+1)
	d.mu.Unlock()
	d.announce(id, peers.Userspace)
	return nil
}

func (d *fakeDevice) Peer(id uint32) (datapath.PeerInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.called("Peer"); err != nil {
		return datapath.PeerInfo{}, err
	}
	if p := d.find(id); p != nil {
		return p.info, nil
	}
	return datapath.PeerInfo{}, peers.ErrNotFound
}

func (d *fakeDevice) Peers() []datapath.PeerInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	var infos []datapath.PeerInfo
	for _, p := range d.peers {
		infos = append(infos, p.info)
	}
	return infos
}

func (d *fakeDevice) InstallKey(id uint32, slot crypto.Slot, cfg crypto.KeyConfig) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.called("InstallKey"); err != nil {
		return err
	}
	p := d.find(id)
	if p == nil {
		return peers.ErrNotFound
	}
	if _, err := crypto.NewKey(cfg); err != nil {
		return err
	}
	cfg.Encrypt.Key, cfg.Decrypt.Key = slices.Clone(cfg.Encrypt.Key), slices.Clone(cfg.Decrypt.Key)
	p.keys[slot] = cfg
	return nil
}

func (d *fakeDevice) Key(id uint32, slot crypto.Slot) (datapath.KeyInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.called("Key"); err != nil {
		return datapath.KeyInfo{}, err
	}
	p := d.find(id)
	if p == nil {
		return datapath.KeyInfo{}, peers.ErrNotFound
	}
	if p.keys[slot].Cipher == crypto.CipherNone {
		return datapath.KeyInfo{}, datapath.ErrNoKey
	}
	return datapath.KeyInfo{ID: p.keys[slot].ID, Cipher: p.keys[slot].Cipher}, nil
}

func (d *fakeDevice) SwapKeys(id uint32) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.called("SwapKeys"); err != nil {
		return err
	}
	p := d.find(id)
	if p == nil {
		return peers.ErrNotFound
	}
	p.keys[0], p.keys[1] = p.keys[1], p.keys[0]
	return nil
}

func (d *fakeDevice) DeleteKey(id uint32, slot crypto.Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.called("DeleteKey"); err != nil {
		return err
	}
	p := d.find(id)
	if p == nil {
		return peers.ErrNotFound
	}
	p.keys[slot] = crypto.KeyConfig{}
	return nil
}

// state describes all that a request could have changed, keys included.
func (d *fakeDevice) state() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, p := range d.peers {
		fmt.Fprintf(&b, "%+v\n", p.info)
		for _, k := range p.keys {
			fmt.Fprintf(&b, "  %d %v %x %x %x %x\n", k.ID, k.Cipher, k.Encrypt.Key, k.Encrypt.NonceTail[:], k.Decrypt.Key,
				k.Decrypt.NonceTail[:])
		}
	}
	return b.String()
}

// testIDs are those of the recorded messages, and others for the other family.
var testIDs = [familyCount]familyIDs{
	ovpnFamily: {family: testFamily, group: testGroup},
	dcoFamily:  {family: testFamily + 1, group: testGroup + 1},
}

// announced is what a family says of an event; nil if it says nothing.
func announced(s *Server, family int, ev datapath.Event) []byte {
	var b builder
	if !families[family].announce(&b, header{kind: s.ids[family].family}, ev) {
		return nil
	}
	return b.buf
}

// testServer is a server without devices, whose ids are those of the recorded messages.
func testServer(t testing.TB) *Server {
	t.Helper()
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.ids = testIDs
	s.newDevice = func(datapath.Config) (device, error) { return nil, unix.ENODEV }
	s.configureLink = func(*netns.NS, []byte) error { return unix.ENODEV }
	s.linkExists = func(g *GenericSocket, ifindex uint32) bool {
		return ifindex == otherLink || s.linkAt(g.ns.ID(), ifindex) != nil
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func homeID(t testing.TB) netns.ID {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	return ns.ID()
}

// addDevice puts a fake device into a server, in our own namespace.
func addDevice(t testing.TB, s *Server, ifindex int, mode peers.Mode) *fakeDevice {
	t.Helper()
	d := &fakeDevice{
		name: fmt.Sprintf("ovpn%d", ifindex), ifindex: ifindex, ns: homeID(t), mode: mode,
		done: make(chan struct{}), fails: map[string]error{},
	}
	was := s.newDevice
	s.newDevice = func(cfg datapath.Config) (device, error) {
		d.notify = cfg.Notify
		return d, nil
	}
	if _, err := s.createLink(datapath.Config{Name: d.name, Mode: mode}, uapi.LinkKind, queueCounts{tx: 1, rx: 1}); err != nil {
		t.Fatal(err)
	}
	s.newDevice = was
	return d
}
