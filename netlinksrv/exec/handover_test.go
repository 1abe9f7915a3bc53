package exec

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// What replaces a descriptor goes with the acknowledgement of the request that took it, and with nothing else.
func TestHandover(t *testing.T) {
	message := func(kind uint16, code int32) []byte {
		b := binary.NativeEndian.AppendUint32(nil, unix.NLMSG_HDRLEN+4)
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, make([]byte, unix.NLMSG_HDRLEN-len(b))...)
		return binary.NativeEndian.AppendUint32(b, uint32(code))
	}
	acknowledgement := message(unix.NLMSG_ERROR, 0)
	announcement := message(unix.NLMSG_MIN_TYPE, 0)
	refusal := message(unix.NLMSG_ERROR, -int32(unix.EBUSY))
	for _, test := range []struct {
		rule   string
		before func(*testing.T, *handover, *task, *os.File)
		send   [][]byte
		with   []bool // which of them have something beside them
	}{
		{"the acknowledgement has it, and the next one not", put, [][]byte{acknowledgement, acknowledgement}, []bool{true, false}},
		{"an announcement that comes first has not", put, [][]byte{announcement, acknowledgement}, []bool{false, true}},
		{"a refusal has not", put, [][]byte{refusal}, []bool{false}},
		{"a message that is cut off has not", put, [][]byte{acknowledgement[:unix.NLMSG_HDRLEN]}, []bool{false}},
		{"the last one counts", func(t *testing.T, h *handover, asking *task, file *os.File) {
			put(t, h, asking, file)
			put(t, h, asking, file)
		}, [][]byte{acknowledgement, acknowledgement}, []bool{true, false}},
		{"a request without an acknowledgement leaves nothing for the next", func(t *testing.T, h *handover, asking *task, file *os.File) {
			put(t, h, asking, file)
			h.end()
			h.begin(&task{})
		}, [][]byte{acknowledgement}, []bool{false}},
		{"an earlier request has no say", func(t *testing.T, h *handover, asking *task, file *os.File) {
			h.end()
			h.begin(&task{})
			if err := asking.Replace(0, file); !errors.Is(err, unix.EOPNOTSUPP) {
				t.Errorf("Replace: %v, want EOPNOTSUPP", err)
			}
		}, [][]byte{acknowledgement}, []bool{false}},
	} {
		t.Run(test.rule, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			ours := os.NewFile(uintptr(fds[0]), "ours")
			defer ours.Close()
			defer unix.Close(fds[1])
			conn, err := ours.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			file, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			h, asking := &handover{pair: &pair{ours, conn}}, &task{}
			h.begin(asking)
			test.before(t, h, asking, file)
			for i, datagram := range test.send {
				if err := h.deliver(datagram); err != nil {
					t.Fatal(err)
				}
				rights := make([]byte, unix.CmsgSpace(4))
				n, control, _, _, err := unix.Recvmsg(fds[1], make([]byte, 100), rights, unix.MSG_CMSG_CLOEXEC)
				if err != nil || n != len(datagram) {
					t.Fatalf("received %d bytes, %v; want %d", n, err, len(datagram))
				}
				if got := control > 0; got != test.with[i] {
					t.Errorf("datagram %d has something beside it: %v, want %v", i, got, test.with[i])
				}
				senderOf(rights[:control]) // closes it
			}
			h.end()
			if h.file != nil {
				t.Error("something is left")
			}
		})
	}
}

func put(t *testing.T, h *handover, asking *task, file *os.File) {
	t.Helper()
	if err := h.put(asking, file); err != nil {
		t.Fatal(err)
	}
}
