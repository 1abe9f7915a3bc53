package exec

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv"
	"ovpn-go/tun/netns"
)

func init() {
	// It asks for a link, in a send that is notified or in one that is not, and is killed before it is answered.
	roles["killed"] = func(args []string) error {
		fd, err := openNetlink(unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		ask := named(unix.RTM_NEWLINK, unix.NLM_F_ACK, 2, "acknowledge")
		if args[0] == "notified" {
			err = toKernel(fd)(ask)
		} else {
			// A question puts a pair in place of the real socket.
			if err := toKernel(fd)(getLoopback(1)); err != nil {
				return err
			}
			if _, err := receiveRoute(fd); err != nil {
				return err
			}
			low, err := unix.Dup(fd)
			if err != nil {
				return err
			}
			if _, err := unix.Write(low, ask); err != nil {
				return err
			}
		}
		if err == nil {
			err = awaitInput(fd)
		}
		return fmt.Errorf("it was answered: %v", err)
	}
}

// Whoever makes something for a client sees whether the client lives to have it.
func TestTaskWaits(t *testing.T) {
	for _, how := range []string{"notified", "not notified"} {
		t.Run(how, func(t *testing.T) {
			s := routeServer()
			routed := s.routed
			before, after := false, true
			s.routed = func(task netlinksrv.Task, ns *netns.NS, datagram []byte) netlinksrv.Verdict {
				if messageType(datagram) == unix.RTM_NEWLINK {
					before = task.Waits()
					if err := unix.Kill(task.PID(), unix.SIGKILL); err != nil {
						t.Error(err)
					}
					for end := time.Now().Add(20 * time.Second); task.Waits() && time.Now().Before(end); {
						time.Sleep(time.Millisecond)
					}
					after = task.Waits()
				}
				return routed(task, ns, datagram)
			}
			o := underSupervisor(t, s, nil, roleCommand("killed", how)...)
			if o.err != nil || o.status != (Status{Code: 137, Signal: unix.SIGKILL}) {
				t.Errorf("%v, %v\n%s", o.status, o.err, o.output)
			}
			if !before || after {
				t.Errorf("it waits %v, and %v after it was killed", before, after)
			}
		})
	}
}
