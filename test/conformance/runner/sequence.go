package main

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// state is what a running sequence has: its thread, its namespaces and everything open in them.
type state struct {
	ids     family
	results script.Results

	netlink    []string // names of the netlink sockets, in the order in which they were opened
	open       map[string]int
	extra      []int // descriptors without a name
	nextFD     int
	namespaces map[string]int
}

// firstFD is the number of the first descriptor that a sequence opens. The numbers are chosen so that both sides
// see the same, whatever else a process has open.
const firstFD = 200

// run executes a sequence on the calling thread, which must be locked.
func run(sequence script.Sequence, ids family) script.Results {
	s := &state{
		ids: ids,
		results: script.Results{
			Name: sequence.Name, Ports: map[string]uint32{}, Interfaces: map[string][]uint32{},
		},
		open:       map[string]int{},
		nextFD:     firstFD,
		namespaces: map[string]int{},
	}
	defer s.end()
	if err := s.enter("home"); err != nil {
		s.results.Problem = err.Error()
		return s.results
	}
	for i := range sequence.Steps {
		outcome, err := s.step(&sequence.Steps[i])
		s.results.Outcomes = append(s.results.Outcomes, outcome)
		if err != nil {
			s.results.Problem = fmt.Sprintf("step %d (%s): %v", i, sequence.Steps[i].Name, err)
			break
		}
	}
	return s.results
}

// end deletes the interfaces that are left and closes everything.
func (s *state) end() {
	_ = setAdmin(true)
	for _, name := range slices.Sorted(maps.Keys(s.namespaces)) {
		if err := unix.Setns(s.namespaces[name], unix.CLONE_NEWNET); err == nil {
			for _, device := range slices.Sorted(maps.Keys(s.results.Interfaces)) {
				deleteLink(device)
			}
		}
	}
	for _, fd := range s.open {
		unix.Close(fd)
	}
	for _, fd := range s.extra {
		unix.Close(fd)
	}
}

// step returns an error where the sequence makes no sense from here on; what a kernel refuses is an outcome.
func (s *state) step(step *script.Step) (script.Outcome, error) {
	var out script.Outcome
	var err error
	on, wait := "", 0
	switch step.Action {
	case script.Netlink:
		out.Errno, err = s.openNetlink(step)
	case script.Option:
		out.Errno = errno(unix.SetsockoptInt(s.fd(step.On), unix.SOL_NETLINK, step.Number, step.Value))
	case script.Join:
		group := step.Number
		if group == 0 {
			group = int(s.ids.group)
		}
		out.Errno = errno(unix.SetsockoptInt(s.fd(step.On), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
	case script.Socket:
		err = s.openSocket(step)
	case script.Close:
		out.Errno = errno(unix.Close(s.fd(step.On)))
		on, wait = step.Kind, step.Number
		s.netlink = slices.DeleteFunc(s.netlink, func(name string) bool { return name == step.On })
		delete(s.open, step.On)
	case script.Interface:
		out.Errno = errno(s.findInterface(step.On))
	case script.Up:
		out.Errno = errno(setUp(step.On))
	case script.Send:
		out.Sent, err = s.patched(step)
		if err == nil {
			out.Errno = errno(s.send(step, out.Sent))
		}
	case script.Rights:
		err = setAdmin(step.Value == 1)
	case script.Namespace:
		err = s.enter(step.On)
	default:
		err = fmt.Errorf("unknown action %q", step.Action)
	}
	if step.Kind != script.Unread {
		out.Received = s.drain(on, wait)
	}
	return out, err
}

func (s *state) send(step *script.Step, datagram []byte) error {
	if step.Kind == script.Unaddressed {
		_, err := unix.Write(s.fd(step.On), datagram)
		return err
	}
	return unix.Sendto(s.fd(step.On), datagram, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// fd returns the descriptor with a name, and one that is never open if there is none.
func (s *state) fd(name string) int {
	if fd, ok := s.open[name]; ok {
		return fd
	}
	return -1
}

func (s *state) openNetlink(step *script.Step) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, step.Value)
	if err != nil {
		return errno(err), err
	}
	// Bound at once, so that the port id is known.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return errno(err), err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return errno(err), err
	}
	if nl, ok := name.(*unix.SockaddrNetlink); ok {
		s.results.Ports[step.On] = nl.Pid
	}
	for _, option := range step.Options {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			return errno(err), err
		}
	}
	s.open[step.On] = fd
	s.netlink = append(s.netlink, step.On)
	return 0, nil
}

// patched returns the datagram of a step with the numbers of this run in it. What has no number is 0, which is a
// descriptor or an interface that isn't the one meant, but the same on all sides.
func (s *state) patched(step *script.Step) ([]byte, error) {
	data := slices.Clone([]byte(step.Data))
	for _, p := range step.Patches {
		switch p.What {
		case script.FamilyID:
			binary.NativeEndian.PutUint16(data[p.Offset:], s.ids.family)
		case script.Ifindex:
			if indexes := s.results.Interfaces[p.Of]; len(indexes) > 0 {
				binary.NativeEndian.PutUint32(data[p.Offset:], indexes[len(indexes)-1])
			}
		case script.FD:
			fd, ok := s.open[p.Of]
			if !ok {
				return nil, fmt.Errorf("there is no descriptor %q", p.Of)
			}
			binary.NativeEndian.PutUint32(data[p.Offset:], uint32(fd))
		default:
			return nil, fmt.Errorf("unknown number %q", p.What)
		}
	}
	return data, nil
}

// drain reads what has arrived on all netlink sockets. With wait it first waits until that many datagrams have
// arrived on the socket on.
func (s *state) drain(on string, wait int) []script.Datagram {
	const patience = 3 * time.Second
	var received []script.Datagram
	count := 0
	take := func(name string) {
		for {
			d, ok := receive(s.open[name])
			if !ok {
				return
			}
			d.On = name
			received = append(received, d)
			if name == on {
				count++
			}
			if d.Error != 0 {
				return
			}
		}
	}
	deadline := time.Now().Add(patience)
	for wait > 0 {
		take(on)
		left := time.Until(deadline)
		if count >= wait || left <= 0 {
			break
		}
		poll := []unix.PollFd{{Fd: int32(s.fd(on)), Events: unix.POLLIN}}
		// An interrupted poll is just repeated.
		_, _ = unix.Poll(poll, int(left.Milliseconds())+1)
	}
	if wait > 0 {
		// The other members of a group get their copies one after the other, and nobody says when.
		time.Sleep(50 * time.Millisecond)
	}
	for _, name := range s.netlink {
		take(name)
	}
	return received
}
