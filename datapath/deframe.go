package datapath

import (
	"encoding/binary"
	"errors"
)

// A frame on a TCP connection is an OpenVPN packet behind its length: two bytes, big-endian, not counting
// themselves.
const (
	framePrefix = 2
	maxFrame    = framePrefix + 65535
)

// errFrameLength says that a stream holds a length that no packet has: the stream is out of step for good.
var errFrameLength = errors.New("impossible frame length")

// nextFrame splits the first frame, prefix included, off a stream. ok is false while that has not
// completely arrived. The error is errFrameLength for a length of 0 or 1 (kernel behaviour: the stream
// parser gives up).
func nextFrame(stream []byte) (frame, rest []byte, ok bool, err error) {
	if len(stream) < framePrefix {
		return nil, stream, false, nil
	}
	n := framePrefix + int(binary.BigEndian.Uint16(stream))
	if n < framePrefix+2 {
		return nil, stream, false, errFrameLength
	}
	if len(stream) < n {
		return nil, stream, false, nil
	}
	return stream[:n], stream[n:], true, nil
}

// missingFrom returns how many bytes the first frame of a stream still lacks, 0 if it is complete or its length is
// not known.
func missingFrom(stream []byte) int {
	if len(stream) < framePrefix {
		return 0
	}
	return max(0, framePrefix+int(binary.BigEndian.Uint16(stream))-len(stream))
}
