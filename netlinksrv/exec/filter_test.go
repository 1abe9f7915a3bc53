package exec

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// seccompData lays out struct seccomp_data as the BPF interpreter reads it: that one loads
// big-endian words, the kernel native ones.
func seccompData(arch uint32, nr int, args ...uint64) []byte {
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[0:], uint32(nr))
	binary.BigEndian.PutUint32(data[4:], arch)
	for i, arg := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(arg))
		binary.BigEndian.PutUint32(data[20+8*i:], uint32(arg>>32))
	}
	return data
}

// A filterCase is a system call and whether it is notified.
type filterCase struct {
	name   string
	arch   uint32
	nr     int
	args   []uint64
	notify bool
}

func checkFilter(t *testing.T, w, kept window, cases []filterCase) {
	t.Helper()
	raw, err := filterProgram(w, kept)
	if err != nil {
		t.Fatal(err)
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("program holds unknown instructions")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			got, err := vm.Run(seccompData(test.arch, test.nr, test.args...))
			if err != nil {
				t.Fatal(err)
			}
			want := unix.SECCOMP_RET_ALLOW
			if test.notify {
				want = unix.SECCOMP_RET_USER_NOTIF
			}
			if got != want {
				t.Errorf("filter returned %#x, want %#x", got, want)
			}
		})
	}
}

func TestFilterProgram(t *testing.T) {
	const (
		lo, hi = 768, 1024
		x32    = 0x40000000
	)
	checkFilter(t, window{lo, hi}, window{}, []filterCase{
		{"generic socket", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, true},
		{"route socket", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, true},
		{"high half of an int argument is ignored", auditArch, unix.SYS_SOCKET, []uint64{1<<32 | unix.AF_NETLINK, unix.SOCK_RAW, 1<<40 | unix.NETLINK_ROUTE}, true},
		{"netlink socket of another protocol", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, false},
		{"unix socket", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, false},
		{"inet socket with the generic protocol's number", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW, 16}, false},
		{"bind of a low descriptor", auditArch, unix.SYS_BIND, []uint64{3, 0, 16}, true},
		{"bind inside the window", auditArch, unix.SYS_BIND, []uint64{800, 0, 12}, true},
		{"connect below the window", auditArch, unix.SYS_CONNECT, []uint64{lo - 1}, false},
		{"connect at the window's start", auditArch, unix.SYS_CONNECT, []uint64{lo}, true},
		{"sendmsg at the window's end", auditArch, unix.SYS_SENDMSG, []uint64{hi - 1}, true},
		{"sendmsg above the window", auditArch, unix.SYS_SENDMSG, []uint64{hi}, false},
		{"sendto on descriptor -1", auditArch, unix.SYS_SENDTO, []uint64{0xffffffff}, false},
		{"sendmmsg", auditArch, unix.SYS_SENDMMSG, []uint64{900}, true},
		{"getsockname", auditArch, unix.SYS_GETSOCKNAME, []uint64{900}, true},
		{"getpeername", auditArch, unix.SYS_GETPEERNAME, []uint64{900}, true},
		{"setsockopt", auditArch, unix.SYS_SETSOCKOPT, []uint64{900}, true},
		{"getsockopt", auditArch, unix.SYS_GETSOCKOPT, []uint64{900}, true},
		{"getsockname of a low descriptor", auditArch, unix.SYS_GETSOCKNAME, []uint64{5}, true},
		{"getpeername of a low descriptor", auditArch, unix.SYS_GETPEERNAME, []uint64{5}, true},
		{"setsockopt of a low descriptor", auditArch, unix.SYS_SETSOCKOPT, []uint64{5}, true},
		{"getsockopt of a low descriptor", auditArch, unix.SYS_GETSOCKOPT, []uint64{5}, true},
		{"shutdown is native", auditArch, unix.SYS_SHUTDOWN, []uint64{5}, false},
		{"write", auditArch, unix.SYS_WRITE, []uint64{900}, true},
		{"write to standard output", auditArch, unix.SYS_WRITE, []uint64{1}, false},
		{"writev", auditArch, unix.SYS_WRITEV, []uint64{900}, true},
		{"receiving is native", auditArch, unix.SYS_RECVMSG, []uint64{900}, false},
		{"reading is native", auditArch, unix.SYS_READ, []uint64{900}, false},
		{"closing is native", auditArch, unix.SYS_CLOSE, []uint64{900}, false},
		{"another architecture", unix.AUDIT_ARCH_I386, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, false},
		{"x32 call numbers", auditArch, x32 | unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, false},
	})
}

func TestFilterProgramWhereDescriptorsAreKept(t *testing.T) {
	w := window{768, 1024}
	kept := keptBeside(w)
	checkFilter(t, w, kept, []filterCase{
		{"generic socket", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, true},
		{"netlink socket of another protocol", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, false},
		{"IPv4 socket", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, 0}, true},
		{"IPv6 socket", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_DGRAM, 0}, true},
		{"unix socket", auditArch, unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, false},
		{"accept", auditArch, unix.SYS_ACCEPT, []uint64{5}, true},
		{"accept4", auditArch, unix.SYS_ACCEPT4, []uint64{5}, true},
		{"epoll_create1", auditArch, unix.SYS_EPOLL_CREATE1, nil, true},
		{"closing of a low descriptor", auditArch, unix.SYS_CLOSE, []uint64{uint64(kept.lo) - 1}, false},
		{"closing at the start", auditArch, unix.SYS_CLOSE, []uint64{uint64(kept.lo)}, true},
		{"closing inside the window", auditArch, unix.SYS_CLOSE, []uint64{800}, true},
		{"closing at the end", auditArch, unix.SYS_CLOSE, []uint64{uint64(kept.hi) - 1}, true},
		{"closing above", auditArch, unix.SYS_CLOSE, []uint64{uint64(kept.hi)}, false},
		{"sendmsg inside the window", auditArch, unix.SYS_SENDMSG, []uint64{800}, true},
		{"sending on a kept descriptor is native", auditArch, unix.SYS_SENDMSG, []uint64{uint64(kept.lo)}, false},
		{"bind", auditArch, unix.SYS_BIND, []uint64{3, 0, 16}, true},
		{"another architecture", unix.AUDIT_ARCH_I386, unix.SYS_CLOSE, []uint64{800}, false},
	})
}
