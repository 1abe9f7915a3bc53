package datapath

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func frame(packet []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
}

func TestNextFrame(t *testing.T) {
	tests := []struct {
		rule   string
		stream []byte
		frame  []byte
		rest   []byte
		ok     bool
		err    error
	}{
		{"nothing yet", nil, nil, nil, false, nil},
		{"half a length", []byte{0}, nil, []byte{0}, false, nil},
		{"length 0", []byte{0, 0, 9}, nil, []byte{0, 0, 9}, false, errFrameLength},
		{"length 1", []byte{0, 1, 9}, nil, []byte{0, 1, 9}, false, errFrameLength},
		{"length 2 is a frame", []byte{0, 2, 8, 9}, []byte{0, 2, 8, 9}, []byte{}, true, nil},
		{"one byte short", []byte{0, 3, 8, 9}, nil, []byte{0, 3, 8, 9}, false, nil},
		{"the next frame stays", []byte{0, 2, 8, 9, 0, 7}, []byte{0, 2, 8, 9}, []byte{0, 7}, true, nil},
		{"longest", append([]byte{0xff, 0xff}, make([]byte, 65535)...), append([]byte{0xff, 0xff}, make([]byte, 65535)...), []byte{}, true, nil},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			got, rest, ok, err := nextFrame(tt.stream)
			if !bytes.Equal(got, tt.frame) || !bytes.Equal(rest, tt.rest) || ok != tt.ok || err != tt.err {
				t.Errorf("nextFrame = %x, %x, %v, %v; want %x, %x, %v, %v", got, rest, ok, err, tt.frame, tt.rest, tt.ok, tt.err)
			}
		})
	}
}

// deframe takes a stream apart as the receiver does, keeping what is incomplete for the next piece.
func deframe(pieces [][]byte) (frames [][]byte, err error) {
	var kept []byte
	for _, piece := range pieces {
		stream := append(kept, piece...)
		for {
			f, rest, ok, err := nextFrame(stream)
			if err != nil {
				return frames, err
			}
			if !ok {
				kept = bytes.Clone(rest)
				break
			}
			frames = append(frames, bytes.Clone(f))
			stream = rest
		}
	}
	return frames, nil
}

func TestFramesSurviveAnySegmentation(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var want [][]byte
		var stream []byte
		for range 1 + rnd.IntN(20) {
			f := frame(make([]byte, 2+rnd.IntN(2000)))
			for i := framePrefix; i < len(f); i++ {
				f[i] = byte(rnd.Uint32())
			}
			want = append(want, f)
			stream = append(stream, f...)
		}
		var pieces [][]byte
		for len(stream) > 0 {
			n := 1 + rnd.IntN(min(len(stream), 3000))
			pieces = append(pieces, stream[:n])
			stream = stream[n:]
		}
		got, err := deframe(pieces)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("frames (-sent +got):\n%s", diff)
		}
	}
}

// FuzzDeframe checks that what comes out of a stream, however it is cut, is what went in up to the first fault.
func FuzzDeframe(f *testing.F) {
	f.Add([]byte{0, 2, 8, 9, 0, 3, 1, 2, 3}, 3)
	f.Add([]byte{0, 0}, 1)
	f.Add([]byte{0, 1, 5}, 2)
	f.Add([]byte{0xff, 0xff, 1}, 1)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		whole, errWhole := deframe([][]byte{stream})
		cut = min(max(cut, 0), len(stream))
		parts, errParts := deframe([][]byte{stream[:cut], stream[cut:]})
		if diff := cmp.Diff(whole, parts); diff != "" || errWhole != errParts {
			t.Errorf("cut at %d: %v and %v (-whole +parts):\n%s", cut, errWhole, errParts, diff)
		}
		if joined := bytes.Join(whole, nil); !bytes.HasPrefix(stream, joined) {
			t.Errorf("frames %x are not the beginning of %x", joined, stream)
		}
	})
}
