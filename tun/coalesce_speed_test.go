package tun_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/tun"
	"ovpn-go/tun/tuntest"
)

// discard is a queue that takes everything.
func discard(t testing.TB) *tun.Queue {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	queue := tun.NewQueue(fd)
	t.Cleanup(func() { queue.Close() })
	return queue
}

// benchPackets are the segments of a benchFrame, which merge into one, or the same ones so that none
// do.
func benchPackets(t testing.TB, name string) [][]byte {
	t.Helper()
	if name == "ACK" {
		p := tuntest.TCP4("10.8.0.2:1", "10.8.0.1:2", 1, nil)
		return slices45(p)
	}
	if name == "alternating" {
		a := tuntest.TCP4("10.8.0.2:1", "10.8.0.1:2", 1, make([]byte, 1364))
		b := tuntest.TCP4("10.8.0.2:3", "10.8.0.1:4", 1, make([]byte, 1364))
		packets := slices45(a)
		for i := range packets {
			if i%2 == 1 {
				packets[i] = b
			}
		}
		return packets
	}
	packets, err := tuntest.Segment(benchFrame(name))
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

func slices45(p []byte) [][]byte {
	packets := make([][]byte, 45)
	for i := range packets {
		packets[i] = p
	}
	return packets
}

func BenchmarkCoalesce(b *testing.B) {
	for _, name := range []string{"TCP4", "TCP6", "UDP4", "ACK", "alternating"} {
		b.Run(name, func(b *testing.B) {
			c := tun.NewCoalescer(discard(b))
			packets := benchPackets(b, name)
			bytes := 0
			for _, p := range packets {
				bytes += len(p)
			}
			b.SetBytes(int64(bytes))
			b.ReportAllocs()
			for b.Loop() {
				for _, p := range packets {
					commit(c, p)
				}
				c.Flush()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(packets)), "ns/packet")
		})
	}
}

func TestCoalesceDoesNotAllocate(t *testing.T) {
	closed := discard(t)
	closed.Close()
	for name, queue := range map[string]*tun.Queue{"taken": discard(t), "refused": closed} {
		for _, flow := range []string{"TCP4", "TCP6", "UDP4", "ACK", "alternating"} {
			c := tun.NewCoalescer(queue)
			packets := benchPackets(t, flow)
			n := testing.AllocsPerRun(100, func() {
				for _, p := range packets {
					copy(c.Next(len(p)), p)
					c.Abandon()
					commit(c, p)
				}
				c.Flush()
			})
			if n != 0 {
				t.Errorf("%s, %s: %v allocations per frame", flow, name, n)
			}
		}
	}
}
