package peers

import (
	"reflect"
	"testing"
)

func TestDirectionsShareNoCacheLine(t *testing.T) {
	peer, counters := reflect.TypeFor[Peer](), reflect.TypeFor[Counters]()
	field := func(in reflect.Type, name string) reflect.StructField {
		f, ok := in.FieldByName(name)
		if !ok {
			t.Fatalf("%v has no field %s", in, name)
		}
		return f
	}
	base := field(peer, "Counters").Offset
	tx, rx := field(counters, "tx"), field(counters, "rx")
	keys := field(peer, "Keys")

	readEnd := keys.Offset + keys.Type.Size()
	sendStart, sendEnd := field(peer, "lastSent").Offset, base+tx.Offset+tx.Type.Size()
	receiveStart, receiveEnd := base+rx.Offset, field(peer, "lastReceived").Offset+8
	coldStart := field(peer, "vpn").Offset
	for _, gap := range []struct {
		name     string
		from, to uintptr
		min      uintptr
	}{
		{"what every packet reads, and what sending writes", readEnd, sendStart, cacheLine - 8},
		{"what sending, and what receiving writes", sendEnd, receiveStart, cacheLine},
		{"what receiving, and what control writes", receiveEnd, coldStart, cacheLine - 8},
	} {
		if gap.to < gap.from+gap.min {
			t.Errorf("%s: %d bytes apart", gap.name, int(gap.to)-int(gap.from))
		}
	}
	if sendEnd-sendStart > cacheLine || receiveEnd-receiveStart > cacheLine {
		t.Errorf("sending writes %d bytes, receiving %d", sendEnd-sendStart, receiveEnd-receiveStart)
	}
	if size := peer.Size(); size > 512 {
		t.Errorf("a peer takes %d bytes", size)
	}
}
