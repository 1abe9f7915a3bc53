package conformance

import (
	"fmt"
	"testing"

	"ovpn-go/test/conformance/script"
	"ovpn-go/test/model"
)

// TestModelled: every sequence can be written down, and a run of which nothing came back fails the check.
func TestModelled(t *testing.T) {
	for stream := range uint64(300) {
		s := NewModelled(fmt.Sprint(stream), model.Generate(3, stream, 60))
		if s.Check(&script.Transcript{}, &script.Results{}) == "" {
			t.Fatalf("sequence %d: nothing came back, and that is right", stream)
		}
	}
}
