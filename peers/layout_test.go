package peers

import (
	"math/bits"
	"reflect"
	"testing"
)

func TestPeerLayout(t *testing.T) {
	if bits.UintSize != 64 {
		t.Skip("the layout is made for 64-bit machines")
	}
	peer, counters := reflect.TypeFor[Peer](), reflect.TypeFor[Counters]()
	lines := func(in reflect.Type, name string, base uintptr) [2]uintptr {
		f, ok := in.FieldByName(name)
		if !ok {
			t.Fatalf("%v has no field %s", in, name)
		}
		return [2]uintptr{(base + f.Offset) / cacheLine, (base + f.Offset + f.Type.Size() - 1) / cacheLine}
	}
	base := func(name string) uintptr {
		f, _ := peer.FieldByName(name)
		return f.Offset
	}
	for _, c := range []struct {
		name string
		got  [2]uintptr
		line uintptr
	}{
		{"id", lines(peer, "id", 0), 0},
		{"Keys", lines(peer, "Keys", 0), 0},
		{"lastSent", lines(peer, "lastSent", 0), 1},
		{"Counters.tx", lines(counters, "tx", base("Counters")), 1},
		{"Counters.rx", lines(counters, "rx", base("Counters")), 2},
		{"lastReceived", lines(peer, "lastReceived", 0), 2},
		{"lastSeen", lines(peer, "lastSeen", 0), 2},
		{"vpn", lines(peer, "vpn", 0), 3},
		{"lifetime", lines(peer, "lifetime", 0), 3},
	} {
		if c.got != [2]uintptr{c.line, c.line} {
			t.Errorf("%s lies in cache lines %d to %d, want %d", c.name, c.got[0], c.got[1], c.line)
		}
	}
	if size := peer.Size(); size != 4*cacheLine {
		t.Errorf("a peer takes %d bytes", size)
	}
}
