package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
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
	packets    []string // names of the sockets that packets are received on, likewise
	readers    map[string]reader
	kept       map[string][]script.Datagram // what has arrived and is not part of an outcome yet
	open       map[string]int
	extra      []int // descriptors without a name
	nextFD     int
	namespaces map[string]int
	noRights   bool // the thread is without CAP_NET_ADMIN
	predicted  bool
	watch      watch
}

// firstFD is the number of the first descriptor that a sequence opens. The numbers are chosen so that both sides
// see the same, whatever else a process has open.
const firstFD = 200

// manyFDs is more descriptors than a sequence opens.
const manyFDs = 80

// run executes a sequence on the calling thread, which must be locked.
func run(sequence script.Sequence, ids family, fds int) script.Results {
	s := &state{
		ids: ids,
		results: script.Results{
			Name: sequence.Name, Ports: map[string]uint32{}, Interfaces: map[string][]uint32{},
		},
		open:       map[string]int{},
		readers:    map[string]reader{},
		kept:       map[string][]script.Datagram{},
		nextFD:     fds,
		namespaces: map[string]int{},
		predicted:  sequence.Predicted,
		watch:      watch{on: sequence.Watch},
	}
	defer s.end()
	if err := s.enter("home"); err != nil {
		s.results.Problem = err.Error()
		return s.results
	}
	for i := range sequence.Steps {
		began := time.Now()
		outcome, err := s.step(&sequence.Steps[i])
		outcome.Began = began
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
		if step.Kind == script.Reset {
			err = unix.SetsockoptLinger(s.fd(step.On), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		out.Errno = errno(unix.Close(s.fd(step.On)))
		isIt := func(name string) bool { return name == step.On }
		s.netlink, s.packets = slices.DeleteFunc(s.netlink, isIt), slices.DeleteFunc(s.packets, isIt)
		delete(s.open, step.On)
	case script.Shutdown:
		out.Errno = errno(unix.Shutdown(s.fd(step.On), unix.SHUT_WR))
	case script.Sysctl:
		err = os.WriteFile("/proc/sys/net/"+step.On, []byte(step.Kind), 0)
	case script.Pause:
		time.Sleep(time.Duration(step.Number) * time.Millisecond)
	case script.Emit:
		out.Notes, err = s.emit(step.Emissions)
	case script.Stats:
		out.Notes, err = s.stats(step.On)
	case script.Interface:
		out.Errno = errno(s.findInterface(step.On))
	case script.Up:
		out.Errno = errno(setUp(step.On, true))
	case script.Down:
		out.Errno = errno(setUp(step.On, false))
	case script.Send:
		out.Sent, err = s.patched(step)
		switch {
		case err != nil:
		case step.Kind == script.Settled:
			return s.settled(step, out.Sent)
		case step.Kind == script.Expecting:
			return s.expecting(step, out.Sent)
		default:
			s.watch.before(s, step, out.Sent)
			out.Errno = errno(s.send(step, out.Sent))
		}
	case script.Rights:
		s.noRights = step.Value == 0
		err = setAdmin(!s.noRights)
	case script.Namespace:
		err = s.enter(step.On)
	default:
		err = fmt.Errorf("unknown action %q", step.Action)
	}
	if step.Kind != script.Unread {
		arrived := s.await(step.Await)
		out.Received = s.drain()
		if !arrived && s.predicted && err == nil {
			err = errInVain
		}
	}
	s.watch.after(s, step, &out)
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

// errInVain ends a predicted sequence.
var errInVain = errors.New("waited in vain")

// patience is how long something is waited for. What is predicted comes, but late on a machine that others leave little time.
func (s *state) patience() time.Duration {
	if s.predicted {
		return 15 * time.Second
	}
	return 5 * time.Second
}

// expecting sends a request until its answer contains what is expected, and returns the last one.
func (s *state) expecting(step *script.Step, datagram []byte) (script.Outcome, error) {
	out := script.Outcome{Sent: datagram}
	pause := time.Millisecond
	for deadline := time.Now().Add(s.patience()); ; {
		out.Errno = errno(s.send(step, datagram))
		out.Received = nil
		var answer []byte
		for d, ok := receive(s.fd(step.On)); ok; d, ok = receive(s.fd(step.On)) {
			d.On = step.On
			out.Received = append(out.Received, d)
			answer = append(answer, d.Data...)
		}
		missing := slices.ContainsFunc(step.Expect, func(b script.Bytes) bool { return !bytes.Contains(answer, b) })
		var err error
		if missing && time.Now().Before(deadline) {
			time.Sleep(pause)
			pause = min(2*pause, 50*time.Millisecond)
			continue
		} else if missing {
			err = errInVain
		}
		out.Received = append(out.Received, s.drain()...)
		return out, err
	}
}

// settled sends a request until it is answered the same twice, and returns the last answers.
func (s *state) settled(step *script.Step, datagram []byte) (script.Outcome, error) {
	const pause, attempts = 15 * time.Millisecond, 200
	out := script.Outcome{Sent: datagram}
	for range attempts {
		before := out.Received
		out.Errno = errno(s.send(step, datagram))
		out.Received = nil
		for d, ok := receive(s.fd(step.On)); ok; d, ok = receive(s.fd(step.On)) {
			d.On = step.On
			out.Received = append(out.Received, d)
		}
		if before != nil && reflect.DeepEqual(before, out.Received) {
			break
		}
		time.Sleep(pause)
	}
	out.Received = append(out.Received, s.drain()...)
	return out, nil
}

// await waits until as many datagrams have arrived as a step expects, and says whether they have.
func (s *state) await(awaited []script.Await) bool {
	deadline := time.Now().Add(s.patience())
	for _, a := range awaited {
		for s.arrived(a.On) < a.Count {
			left := time.Until(deadline)
			if left <= 0 {
				return false
			}
			poll := []unix.PollFd{{Fd: int32(s.fd(a.On)), Events: unix.POLLIN}}
			// An interrupted poll is just repeated. So is one that something readable ends which is no datagram.
			if _, err := unix.Poll(poll, int(left.Milliseconds())+1); err == nil && poll[0].Revents&^unix.POLLIN != 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	if len(awaited) > 0 && s.notices(awaited) && !s.predicted {
		// The other members of a group get their copies one after the other, and nobody says when.
		time.Sleep(50 * time.Millisecond)
	}
	return true
}

// notices says whether one of the sockets awaited is a netlink socket.
func (s *state) notices(awaited []script.Await) bool {
	return slices.ContainsFunc(awaited, func(a script.Await) bool { return slices.Contains(s.netlink, a.On) })
}

// arrived takes what has arrived on a socket, and returns how much of that there is since the last step.
func (s *state) arrived(name string) int {
	if slices.Contains(s.netlink, name) {
		for {
			d, ok := receive(s.open[name])
			if !ok {
				break
			}
			s.kept[name] = append(s.kept[name], d)
			if d.Error != 0 {
				break
			}
		}
	} else if read := s.readers[name]; read != nil {
		s.kept[name] = append(s.kept[name], read(s.fd(name))...)
	}
	return len(s.kept[name])
}

// drain returns what has arrived on all sockets.
func (s *state) drain() []script.Datagram {
	var received []script.Datagram
	for _, name := range slices.Concat(s.netlink, s.packets) {
		s.arrived(name)
		for _, d := range s.kept[name] {
			d.On = name
			received = append(received, d)
		}
		delete(s.kept, name)
	}
	return received
}
