package test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
)

// insist goes through a session as runSession does, but says each request before it makes it, makes it when it has read a line, says what came
// of it, and when it has read another what there is then. What was refused it asks for again.
func insist(transport string, in *bufio.Scanner) error {
	s := session{transport: transport}
	if err := s.resolve(); err != nil {
		return err
	}
	looker := s // asks what there is, whatever becomes of the session's own sockets
	looker.ovpnClient = &ovpnClient{Conn: s.Conn}
	for _, request := range []struct {
		name string // "" if it is nothing that is asked of who serves
		do   func() error
	}{
		{"sockets", s.reopen},
		{"link", func() error { return s.NewLink(client.LinkConfig{Name: sessionLink, Mode: client.MP}) }},
		{"look at the link", func() error {
			link, err := s.Link(sessionLink)
			s.ifindex = link.Index
			return err
		}},
		{"", func() error {
			return errors.Join(setUpInterface(sessionLink, tunnelEnds[0]), s.listen(), s.openSockets())
		}},
		{"peer", s.makePeer},
		{"key", func() error { return s.makeKey(client.Primary, 0) }},
		{"second key", func() error { return s.makeKey(client.Secondary, 1) }},
		{"time-outs", s.setPeer},
		{"", func() error { return errors.Join(s.useKey(0), s.exchange()) }},
		{"look at the peers", func() error { _, err := s.Peers(s.ifindex); return err }},
		{"swap keys", func() error { return s.SwapKeys(s.ifindex, sessionPeer) }},
		{"no second key", func() error { return s.DeleteKey(s.ifindex, sessionPeer, client.Secondary) }},
		{"", func() error { return errors.Join(s.useKey(1), s.exchange()) }},
		{"no peer", s.endPeer},
		{"no link", func() error { return s.DeleteLink(sessionLink) }},
	} {
		if request.name == "" {
			if err := request.do(); err != nil {
				return err
			}
			continue
		}
		for granted := false; !granted; {
			fmt.Println(request.name)
			in.Scan()
			err := request.do()
			fmt.Println("answer:", err)
			in.Scan()
			runtime.GC() // a library may have let go of a socket without closing it
			state, lookErr := looker.state()
			if lookErr != nil {
				return lookErr
			}
			fmt.Println("there is:", state)
			granted = err == nil
		}
	}
	fmt.Println("that is all")
	return nil
}

// reopen opens new sockets in place of those that the session has, which stay open.
func (s *session) reopen() error {
	conn, err := client.Dial()
	if err != nil {
		return err
	}
	err = conn.Usable()
	var monitor *client.Monitor
	if err == nil {
		monitor, err = client.OpenMonitor()
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	s.ovpnClient, s.monitor = &ovpnClient{Conn: conn}, monitor
	return nil
}

// state is what there is of the session's, in words.
func (s *session) state() (string, error) {
	link, err := s.Link(sessionLink)
	if errors.Is(err, unix.ENODEV) {
		return "no link", nil
	}
	if err != nil {
		return "", err
	}
	list, err := s.Peers(link.Index)
	if err != nil {
		return "", err
	}
	words := []string{"link"}
	for _, p := range list {
		words = append(words, fmt.Sprintf("peer %d %v", p.ID, p.Keepalive))
		for _, slot := range []client.Slot{client.Primary, client.Secondary} {
			key, err := s.Key(link.Index, p.ID, slot)
			if err == nil {
				words = append(words, fmt.Sprintf("%v %d", slot, key.ID))
			} else if !errors.Is(err, unix.ENOENT) {
				return "", err
			}
		}
	}
	return strings.Join(words, ", "), nil
}

// limitDescriptors lets a process open so many descriptors more, or with -1 as many as it could at first.
func limitDescriptors(t *testing.T, pid, more int) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = limit.Max
	if more >= 0 {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		var used []string
		for _, e := range entries {
			used = append(used, e.Name())
		}
		limit.Cur = 0 // the first number that it can't have
		for free := 0; ; limit.Cur++ {
			if slices.Contains(used, fmt.Sprint(limit.Cur)) {
				continue
			}
			if free == more {
				break
			}
			free++
		}
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
}

// namesShortage reports whether a refusal says what is lacking. Of a peer's socket the module says ENOTSOCK whatever is wrong, and the errno in the
// text; a daemon that refuses a client says in words whose descriptors they are.
func namesShortage(answer string) bool {
	return strings.Contains(answer, unix.ENOBUFS.Error()) || strings.Contains(answer, fmt.Sprintf("-%d", unix.ENOBUFS)) ||
		strings.Contains(answer, "daemon: ") && strings.Contains(answer, unix.EMFILE.Error())
}

// TestNoDescriptorsLeft has a client make each request of a session while who serves it may open no more descriptors, then one more, and so on
// until it is granted. What is refused is refused as the kernel would when it runs short, and changes and keeps nothing.
func TestNoDescriptorsLeft(t *testing.T) { overBoth(t, testNoDescriptorsLeft) }

func testNoDescriptorsLeft(t *testing.T, tcp bool) {
	const most = 30 // any request does with fewer, where their numbers don't matter
	const relay = 5 // what a route socket takes after a refusal that the kernel can't give, until it is used for something else
	eachService(t, tcp, func(t *testing.T, h *sessionHost, pid int, pprof string) {
		h.whole() // what is made once is made now
		before := held(t, pid, pprof)
		h.say("insist")
		state, refusals := "there is: no link", 0
		for request := h.line(); request != "that is all"; request = h.line() {
			had := descriptors(t, pid)
			for more := 0; ; more++ {
				if more > most {
					more = -1
				}
				limitDescriptors(t, pid, more)
				// A daemon's new client waits until it is accepted.
				late := time.AfterFunc(2*time.Second, func() { limitDescriptors(t, pid, -1) })
				h.say("go on")
				answer := h.line()
				late.Stop()
				limitDescriptors(t, pid, -1)
				h.say("what is there?")
				now := h.line()
				if answer == "answer: <nil>" {
					state = now
					break
				}
				if more < 0 {
					t.Fatalf("%s, with no limit: %s", request, answer)
				}
				refusals++
				if !namesShortage(answer) {
					t.Errorf("%s, with %d descriptors: %s", request, more, answer)
				}
				if now != state {
					t.Fatalf("%s, with %d descriptors: refused, but now %s; before %s", request, more, now, state)
				}
				eventually(t, 15*time.Second, fmt.Sprintf("%s, refused with %d descriptors, to keep none", request, more), func() bool {
					return descriptors(t, pid) <= had+relay
				})
				h.expect(request)
			}
		}
		h.expect("ended 0")
		requireHeld(t, pid, pprof, before)
		if refusals == 0 {
			t.Error("nothing was refused")
		}
		h.whole()
	})
}
