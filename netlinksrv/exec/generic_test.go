package exec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// request is a netlink message of the family id that the fake server takes for its own.
func request(sequence uint32, payload string) []byte {
	b := make([]byte, 16, 16+len(payload))
	binary.NativeEndian.PutUint32(b[0:], uint32(16+len(payload)))
	binary.NativeEndian.PutUint16(b[4:], 0x30)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(b[8:], sequence)
	return append(b, payload...)
}

// openNetlink is socket(AF_NETLINK) and checks where the descriptor lies.
func openNetlink(flags, protocol int) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|flags, protocol)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if fd < 768 || fd >= 1024 {
		return -1, fmt.Errorf("socket returned %d", fd)
	}
	return fd, nil
}

// expectDatagram receives one datagram and compares all that a library can see of it.
func expectDatagram(fd int, want []byte) error {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, flags, from, err := receive(fd, buf, oob, unix.MSG_DONTWAIT)
	switch {
	case err != nil:
		return fmt.Errorf("recvmsg: %w", err)
	case !bytes.Equal(buf[:n], want):
		return fmt.Errorf("received %x, want %x", buf[:n], want)
	case oobn != 0:
		return fmt.Errorf("%d bytes of control data", oobn)
	case flags != 0:
		return fmt.Errorf("flags %#x", flags)
	case len(from) != netlinkAddressSize:
		return fmt.Errorf("source address of %d bytes: %x", len(from), from)
	case !bytes.Equal(from[2:8], make([]byte, 6)):
		return fmt.Errorf("source address %x: padding and port are not zero", from)
	}
	return nil
}

// expectAnswers sends a request and expects, at once, the copy and the acknowledgement.
func expectAnswers(fd int, send func(b []byte) error, sequence uint32) error {
	b := request(sequence, fmt.Sprintf("request %d", sequence))
	if err := send(b); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := expectDatagram(fd, b); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if err := expectDatagram(fd, acknowledgement(b)); err != nil {
		return fmt.Errorf("acknowledgement: %w", err)
	}
	if err := expectEmpty(fd); err != nil {
		return err
	}
	return nil
}

func expectEmpty(fd int) error {
	if _, _, _, _, err := receive(fd, make([]byte, 8), nil, unix.MSG_DONTWAIT); err != unix.EAGAIN {
		return fmt.Errorf("receive on an empty queue: %v", err)
	}
	return nil
}

func toKernel(fd int) func([]byte) error {
	return func(b []byte) error { return unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) }
}

func expectName(fd int, port uint32) error {
	raw, err := socketName(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	want := netlinkAddress{port: port}.encode()
	if !bytes.Equal(raw, want) {
		return fmt.Errorf("getsockname returned %x, want %x", raw, want)
	}
	return nil
}

// steps runs named checks in order and stops at the first that fails.
type steps []struct {
	name  string
	check func() error
}

func (s steps) run() error {
	for _, step := range s {
		if err := step.check(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// expect turns an unexpected result into an error.
func expect[T comparable](what string, got T, err error, want T) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if got != want {
		return fmt.Errorf("%s is %v, want %v", what, got, want)
	}
	return nil
}

func expectErrno(what string, err error, want unix.Errno) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("%s: %v, want %v", what, err, want)
	}
	return nil
}

func init() {
	roles["generic"] = func([]string) error {
		first, err := openNetlink(unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		second, err := openNetlink(0, unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		port := uint32(os.Getpid())&0x3fffff + 7<<22
		return steps{
			{"descriptor flags are as asked for", func() error {
				flags, err := unix.FcntlInt(uintptr(first), unix.F_GETFD, 0)
				if err := expect("F_GETFD", flags, err, unix.FD_CLOEXEC); err != nil {
					return err
				}
				flags, err = unix.FcntlInt(uintptr(first), unix.F_GETFL, 0)
				if err := expect("F_GETFL", flags, err, unix.O_RDWR|unix.O_NONBLOCK); err != nil {
					return err
				}
				flags, err = unix.FcntlInt(uintptr(second), unix.F_GETFD, 0)
				if err := expect("F_GETFD", flags, err, 0); err != nil {
					return err
				}
				flags, err = unix.FcntlInt(uintptr(second), unix.F_GETFL, 0)
				return expect("F_GETFL", flags, err, unix.O_RDWR)
			}},
			{"unbound name", func() error { return expectName(first, 0) }},
			{"an empty queue on a non-blocking socket", func() error {
				_, _, _, _, err := receive(first, make([]byte, 8), nil, 0)
				return expectErrno("recvmsg", err, unix.EAGAIN)
			}},
			{"bind to a port", func() error {
				if err := unix.Bind(first, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port}); err != nil {
					return err
				}
				return expectName(first, port)
			}},
			{"the same port again", func() error {
				return expectErrno("bind", unix.Bind(second, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port}), unix.EADDRINUSE)
			}},
			{"bind to port 0", func() error {
				if err := unix.Bind(second, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
					return err
				}
				return expectName(second, uint32(os.Getpid()))
			}},
			{"bind with another family", func() error {
				return expectErrno("bind", unix.Bind(first, &unix.SockaddrInet4{}), unix.EINVAL)
			}},
			{"bind with a short address", func() error {
				return expectErrno("bind", bindRaw(first, netlinkAddress{}.encode()[:8]), unix.EINVAL)
			}},
			{"peer name", func() error {
				raw, err := peerName(first)
				return expect("getpeername", string(raw), err, string(netlinkAddress{}.encode()))
			}},
			{"connect to the kernel", func() error {
				return unix.Connect(first, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			}},
			{"options of the socket level", func() error {
				for _, option := range []struct {
					name string
					id   int
					want int
				}{
					{"SO_DOMAIN", unix.SO_DOMAIN, unix.AF_NETLINK},
					{"SO_TYPE", unix.SO_TYPE, unix.SOCK_RAW},
					{"SO_PROTOCOL", unix.SO_PROTOCOL, unix.NETLINK_GENERIC},
					{"SO_PASSCRED", unix.SO_PASSCRED, 0},
				} {
					got, err := unix.GetsockoptInt(first, unix.SOL_SOCKET, option.id)
					if err := expect(option.name, got, err, option.want); err != nil {
						return err
					}
				}
				for _, option := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
					if err := unix.SetsockoptInt(first, unix.SOL_SOCKET, option, 32768); err != nil {
						return err
					}
					got, err := unix.GetsockoptInt(first, unix.SOL_SOCKET, option)
					if err := expect("buffer", got, err, 65536); err != nil {
						return err
					}
				}
				if err := unix.SetsockoptInt(first, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err != nil {
					return err
				}
				got, err := unix.GetsockoptInt(first, unix.SOL_SOCKET, unix.SO_PASSCRED)
				return expect("SO_PASSCRED", got, err, 1)
			}},
			{"options of the netlink level", func() error {
				_, err := unix.GetsockoptInt(first, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK)
				if err := expectErrno("getsockopt", err, unix.ENOPROTOOPT); err != nil {
					return err
				}
				if err := unix.SetsockoptInt(first, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1); err != nil {
					return err
				}
				got, err := unix.GetsockoptInt(first, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK)
				return expect("NETLINK_EXT_ACK", got, err, 1)
			}},
			{"options of another level", func() error {
				return expectErrno("setsockopt", unix.SetsockoptInt(first, unix.SOL_TCP, 1, 1), unix.ENOPROTOOPT)
			}},
			{"sendto with an address", func() error { return expectAnswers(first, toKernel(first), 1) }},
			{"sendto without an address", func() error {
				return expectAnswers(first, func(b []byte) error { return unix.Send(first, b, 0) }, 2)
			}},
			{"sendmsg", func() error {
				return expectAnswers(first, func(b []byte) error {
					n, err := unix.SendmsgBuffers(first, [][]byte{b[:5], b[5:16], b[16:]}, nil, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}, 0)
					return expect("sendmsg", n, err, len(b))
				}, 3)
			}},
			{"write", func() error {
				return expectAnswers(first, func(b []byte) error {
					n, err := unix.Write(first, b)
					return expect("write", n, err, len(b))
				}, 4)
			}},
			{"writev", func() error {
				return expectAnswers(first, func(b []byte) error {
					n, err := unix.Writev(first, [][]byte{b[:1], b[1:]})
					return expect("writev", n, err, len(b))
				}, 5)
			}},
			{"sendmmsg", func() error {
				a, b := request(6, "first"), request(7, "second of another length")
				lengths, err := sendMany(first, a, b)
				if err := expect("sendmmsg", fmt.Sprint(lengths), err, fmt.Sprint([]uint32{uint32(len(a)), uint32(len(b))})); err != nil {
					return err
				}
				for _, want := range [][]byte{a, acknowledgement(a), b, acknowledgement(b)} {
					if err := expectDatagram(first, want); err != nil {
						return err
					}
				}
				return expectEmpty(first)
			}},
			{"a send from unmapped memory", func() error {
				_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(first), 8, 100, 0, 0, 0)
				return expectErrno("sendto", errno, unix.EFAULT)
			}},
			{"a send larger than the buffer", func() error {
				return expectErrno("sendto", unix.Send(first, make([]byte, 70000), 0), unix.EMSGSIZE)
			}},
			{"a send to another port", func() error {
				return expectErrno("sendto", unix.Sendto(first, request(1, ""), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: 1}), unix.ECONNREFUSED)
			}},
			{"a send to another family", func() error {
				return expectErrno("sendto", unix.Sendto(first, request(1, ""), 0, &unix.SockaddrInet4{}), unix.EINVAL)
			}},
			{"peeking with truncation, as libnl does", func() error {
				b := request(8, "a longer answer than sixteen bytes")
				if err := toKernel(first)(b); err != nil {
					return err
				}
				n, _, flags, _, err := receive(first, make([]byte, 16), nil, unix.MSG_PEEK|unix.MSG_TRUNC)
				if err := expect("peeked size", n, err, len(b)); err != nil {
					return err
				}
				if err := expect("peek flags", flags, nil, unix.MSG_TRUNC); err != nil {
					return err
				}
				n, _, _, _, err = receive(first, nil, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
				if err := expect("size peeked without a buffer", n, err, len(b)); err != nil {
					return err
				}
				n, _, _, _, err = receive(first, make([]byte, 16), nil, unix.MSG_PEEK)
				if err := expect("bytes peeked without MSG_TRUNC", n, err, 16); err != nil {
					return err
				}
				if err := expectDatagram(first, b); err != nil {
					return err
				}
				return expectDatagram(first, acknowledgement(b))
			}},
			{"no control data and no MSG_CTRUNC for who passes no buffer", func() error {
				b := request(9, "")
				if err := toKernel(second)(b); err != nil {
					return err
				}
				for range 2 {
					_, _, flags, _, err := receive(second, make([]byte, 64), nil, 0)
					if err := expect("flags", flags, err, 0); err != nil {
						return err
					}
				}
				return nil
			}},
			{"close frees the port", func() error {
				if err := unix.Close(first); err != nil {
					return err
				}
				third, err := openNetlink(0, unix.NETLINK_GENERIC)
				if err != nil {
					return err
				}
				return unix.Bind(third, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port})
			}},
		}.run()
	}
}

func TestGenericSocket(t *testing.T) {
	s := newFakeServer()
	before := openDescriptors(t)
	mustSucceed(t, s, roleCommand("generic")...)
	if !s.allClosed() {
		t.Error("a socket was not closed")
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
