package exec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
)

// FuzzSocketCalls makes calls with arguments of all kinds on a netlink socket of ours and on one of the kernel's, and
// compares what they return and what they leave in memory.
func FuzzSocketCalls(f *testing.F) {
	for kind := range byte(callKinds) {
		f.Add([]byte{kind, 4, 0, 12, 0, 16, 0, 3, 4, 5, 0, kind, 4, 0, 4, 8, 4, 0, 0, 1, 1, kind, 0, 0, 0, 1, 1, 2, 2, 3, 3})
	}
	c := newCaller(f)
	f.Fuzz(func(t *testing.T, script []byte) { c.run(t, script[:min(len(script), 200)]) })
}

// caller is a thread of this process that is the client of a session.
type caller struct {
	memory   []byte // of the calls' arguments, between pages that are none
	calls    chan systemCall
	returned chan systemReturn
}

type systemCall struct {
	nr   uintptr
	args [6]uintptr
}

type systemReturn struct {
	value uintptr
	errno unix.Errno
}

const callWindow = 1000 // the first number of the session's descriptors

func newCaller(f *testing.F) *caller {
	requireRoot(f)
	server, err := netlinksrv.New(netlinksrv.Config{})
	if err != nil {
		f.Fatal(err)
	}
	page := unix.Getpagesize()
	memory, err := unix.Mmap(-1, 0, 3*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		f.Fatal(err)
	}
	if err := unix.Mprotect(memory[page:2*page], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		f.Fatal(err)
	}
	c := &caller{memory: memory[page : 2*page : 2*page], calls: make(chan systemCall), returned: make(chan systemReturn)}
	w := window{callWindow, callWindow + 1000}
	program, err := filterProgram(w, window{})
	if err != nil {
		f.Fatal(err)
	}
	installed := make(chan error)
	var filter int
	go func() {
		runtime.LockOSThread()     // and never unlocked: the thread ends with the goroutine, and the filter with it
		const newListener = 1 << 3 // SECCOMP_FILTER_FLAG_NEW_LISTENER
		var err error
		filter, err = installFilter(program, newListener)
		installed <- err
		for call := range c.calls {
			a := call.args
			value, _, errno := unix.Syscall6(call.nr, a[0], a[1], a[2], a[3], a[4], a[5])
			c.returned <- systemReturn{value, errno}
		}
		close(c.returned)
	}()
	if err := <-installed; err != nil {
		f.Fatal(err)
	}
	l, err := newListener(filter)
	if err != nil {
		f.Fatal(err)
	}
	s := newSession(realServer{server}, slog.New(slog.DiscardHandler))
	if err := s.start(l, w); err != nil {
		f.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- l.serve(s.notified) }()
	f.Cleanup(func() {
		close(c.calls)
		<-c.returned
		l.shutdown()
		if err := <-served; err != nil {
			f.Error(err)
		}
		s.close()
		server.Close()
		unix.Munmap(memory)
	})
	return c
}

func (c *caller) call(nr uintptr, args [6]uintptr) systemReturn {
	c.calls <- systemCall{nr, args}
	return <-c.returned
}

// run makes the calls of a script on both sockets.
func (c *caller) run(t *testing.T, script []byte) {
	ours := c.call(unix.SYS_SOCKET, [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC})
	if ours.errno != 0 || ours.value < callWindow {
		t.Fatalf("socket: descriptor %d, %v", ours.value, ours.errno)
	}
	defer unix.Close(int(ours.value))
	kernels, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kernels)
	// The kernel's socket is bound by a send that fails as well.
	copy(c.memory, netlinkAddress{}.encode())
	for _, fd := range []uintptr{ours.value, uintptr(kernels)} {
		if r := c.call(unix.SYS_BIND, [6]uintptr{fd, uintptr(unsafe.Pointer(&c.memory[0])), netlinkAddressSize}); r.errno != 0 {
			t.Fatal(r.errno)
		}
	}
	in := &arguments{script: script, memory: c.memory}
	for range 8 {
		if len(in.script) == 0 {
			return
		}
		clear(c.memory)
		call, ports := in.call()
		before := bytes.Clone(c.memory)
		var results [2]string
		for i, fd := range []uintptr{ours.value, uintptr(kernels)} {
			copy(c.memory, before)
			// The two can't have the same port, as ours has it in the kernel as well.
			if port := c.memory[4:]; binary.NativeEndian.Uint32(port) != 0 {
				port[0] += byte(i)
			}
			call.args[0] = fd
			r := c.call(call.nr, call.args)
			if ports != 0 && r.errno == 0 && ports+netlinkAddressSize <= len(c.memory) {
				clear(c.memory[ports+4 : ports+8])
			}
			copy(c.memory[4:8], before[4:])
			results[i] = r.errno.Error()
			if r.errno == 0 { // what a call that fails has written already differs between versions of the kernel
				results[i] = fmt.Sprintf("%d, memory %x", r.value, bytes.TrimRight(c.memory, "\x00"))
			}
		}
		if diff := cmp.Diff(results[1], results[0]); diff != "" {
			t.Fatalf("call %d with %x (-the kernel's socket +ours):\n%s", call.nr, call.args[1:], diff)
		}
	}
}

// arguments makes calls of a script.
type arguments struct {
	script []byte
	memory []byte
}

// The memory has room for an address at the front, then for a vector of messages, of pieces, and the data.
const (
	headersAt = 256
	piecesAt  = 1024
	dataAt    = 2048
)

func (a *arguments) next() (b byte) {
	if len(a.script) > 0 {
		b, a.script = a.script[0], a.script[1:]
	}
	return b
}

func (a *arguments) at(offset int) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(a.memory))) + uintptr(offset)
}

// pointer returns one to usual memory, to none, or to some that ends too early.
func (a *arguments) pointer(usual int) (address uintptr, offset int) {
	switch a.next() % 8 {
	case 0:
		return 0, 0
	case 1:
		return a.at(len(a.memory)), 0
	case 2:
		offset = len(a.memory) - int(a.next())%64
		return a.at(offset), offset
	case 3:
		return 64, 0 // on the page that nobody has
	}
	return a.at(usual), usual
}

// length returns a length: mostly a small one.
func (a *arguments) length() uint64 {
	switch b := a.next(); b {
	case 255:
		return 1<<64 - 1
	case 254:
		return 1 << 63
	case 253:
		return 1 << 31
	case 252:
		return 1 << 20
	case 251:
		return 4096
	default:
		return uint64(b)
	}
}

const callKinds = 11

// call returns the next call but for its descriptor. ports is where it leaves an address, whose port is a matter of luck.
func (a *arguments) call() (call systemCall, ports int) {
	kind := a.next() % callKinds
	call.nr = []uintptr{unix.SYS_BIND, unix.SYS_CONNECT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT,
		unix.SYS_WRITE, unix.SYS_WRITEV, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG}[kind]
	switch call.nr {
	case unix.SYS_BIND, unix.SYS_CONNECT:
		a.address()
		call.args[1], _ = a.pointer(0)
		call.args[2] = uintptr(uint32(a.length()))
	case unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME:
		call.args[1], ports = a.pointer(32)
		call.args[2] = a.lengthFor(ports)
	case unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT:
		call.args[1], call.args[2] = a.option()
		var value int
		call.args[3], value = a.pointer(0)
		if call.nr == unix.SYS_GETSOCKOPT {
			call.args[4] = a.lengthFor(value)
			break
		}
		a.memory[0] = a.next()
		call.args[4] = uintptr(uint32(a.length()))
	case unix.SYS_WRITE, unix.SYS_SENDTO:
		call.args[1], _ = a.pointer(dataAt)
		call.args[2] = uintptr(min(a.length(), 1<<31)) // no piece of memory is longer than all there is
		if call.nr == unix.SYS_SENDTO {
			call.args[3] = a.flags()
			a.address()
			call.args[4], _ = a.pointer(0)
			call.args[5] = uintptr(uint32(a.length()))
		}
	case unix.SYS_WRITEV:
		call.args[1], call.args[2] = a.vector(piecesAt)
	case unix.SYS_SENDMSG:
		a.header(headersAt, piecesAt)
		call.args[1], _ = a.pointer(headersAt)
		call.args[2] = a.flags()
	case unix.SYS_SENDMMSG:
		for i := range 3 {
			a.header(headersAt+i*mmsghdrSize, piecesAt+i*4*iovecSize)
		}
		call.args[1], _ = a.pointer(headersAt)
		call.args[2] = uintptr(a.next() % 4)
		call.args[3] = a.flags()
	}
	return call, ports
}

// address writes one to the front of the memory. Ports are the kernel's or one that no other process takes.
func (a *arguments) address() {
	family := []uint16{unix.AF_NETLINK, unix.AF_NETLINK, unix.AF_NETLINK, unix.AF_UNSPEC, unix.AF_UNIX, unix.AF_PACKET}[a.next()%6]
	binary.NativeEndian.PutUint16(a.memory, family)
	binary.NativeEndian.PutUint32(a.memory[4:], []uint32{0, 0, 1<<30 + 2*uint32(unix.Getpid())}[a.next()%3])
}

// lengthFor writes a length that a call reads and writes, and returns a pointer to it. It is apart from the value, at offset
// value, since kernels differ in which they write first.
func (a *arguments) lengthFor(value int) uintptr {
	address, offset := a.pointer(headersAt)
	if value > headersAt {
		address, offset = a.at(headersAt), headersAt
	}
	length := a.length()
	if offset != 0 && offset+4 <= len(a.memory) {
		binary.NativeEndian.PutUint32(a.memory[offset:], uint32(length))
	}
	return address
}

// option returns one that is the same on both sockets.
func (a *arguments) option() (level, name uintptr) {
	if a.next()%4 == 0 {
		return unix.SOL_SOCKET, []uintptr{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL, unix.SO_PASSCRED}[a.next()%4]
	}
	if name = uintptr(a.next() % 16); name == unix.NETLINK_LISTEN_ALL_NSID {
		name = 0 // takes CAP_NET_BROADCAST, which the server does not borrow from the client
	}
	return unix.SOL_NETLINK, name
}

func (a *arguments) flags() uintptr {
	return []uintptr{0, 0, unix.MSG_DONTWAIT, unix.MSG_NOSIGNAL, unix.MSG_OOB}[a.next()%5]
}

// vector writes up to four pieces of data, and returns a pointer to them and their number.
func (a *arguments) vector(at int) (address, count uintptr) {
	for i := range 4 {
		piece, _ := a.pointer(dataAt)
		binary.NativeEndian.PutUint64(a.memory[at+i*iovecSize:], uint64(piece))
		binary.NativeEndian.PutUint64(a.memory[at+i*iovecSize+8:], a.length())
	}
	address, _ = a.pointer(at)
	if count = uintptr(a.next() % 8); count > 4 {
		count = uintptr(a.length())
	}
	return address, count
}

// header writes a struct msghdr.
func (a *arguments) header(at, pieces int) {
	h := a.memory[at : at+msghdrSize]
	if a.next()%2 == 0 {
		a.address()
		name, _ := a.pointer(0)
		binary.NativeEndian.PutUint64(h, uint64(name))
		binary.NativeEndian.PutUint32(h[8:], uint32(a.length()))
	}
	vector, count := a.vector(pieces)
	binary.NativeEndian.PutUint64(h[16:], uint64(vector))
	binary.NativeEndian.PutUint64(h[24:], uint64(count))
}
