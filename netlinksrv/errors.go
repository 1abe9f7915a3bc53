package netlinksrv

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// textPrefix is what the kernel puts before every text of the module.
const textPrefix = "ovpn: "

// maxText is the longest formatted text (NETLINK_MAX_FMTMSG_LEN less the NUL); longer ones are cut.
const maxText = 79

// requestError is the refusal of a request: an errno, and what the extended acknowledgement says about it.
// The zero value of a field other than errno means that nothing is said. Without an errno, it is a warning.
type requestError struct {
	errno unix.Errno
	text  string
	// bad is the offset of the attribute at fault, from the start of the message.
	bad int
	// policy is what the attribute at fault would have had to satisfy.
	policy *attributePolicy
	// missing is the number of the attribute that is not there, and nest the offset of the attribute in which
	// it is not; 0 if that is the message itself.
	missing uint16
	nest    int
}

func (e *requestError) Error() string {
	switch {
	case e.text != "":
		return fmt.Sprintf("%s (%v)", e.text, e.errno)
	case e.missing != 0:
		return fmt.Sprintf("attribute %d is missing (%v)", e.missing, e.errno)
	}
	return e.errno.Error()
}

// refuses reports whether e, which may be nil, is more than a warning.
func (e *requestError) refuses() bool { return e != nil && e.errno != 0 }

// Unwrap lets errors.Is find the errno.
func (e *requestError) Unwrap() error { return e.errno }

// refuse returns the error of a handler's check.
func refuse(errno unix.Errno, format string, args ...any) error {
	text := textPrefix + fmt.Sprintf(format, args...)
	return &requestError{errno: errno, text: text[:min(len(text), maxText)]}
}

// missing returns the error for a required attribute that in lacks.
func missing(in *parsed, number uint16) error {
	return &requestError{errno: unix.EINVAL, missing: number, nest: in.nest.offset}
}

// asRequestError finds what to tell the client about any error: the request error in it, else the errno in it,
// else fallback.
func asRequestError(err error, fallback unix.Errno) *requestError {
	var re *requestError
	if errors.As(err, &re) {
		return re
	}
	return &requestError{errno: errnoOf(err, fallback)}
}

// isShortage reports whether an error says that this process, or the system, has no descriptor left.
func isShortage(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }

// errnoOf returns the errno in an error, or fallback if there is none. That we have no descriptor left is what the kernel says when it runs
// short (ENOBUFS): of EMFILE a client would look for the reason in itself.
func errnoOf(err error, fallback unix.Errno) unix.Errno {
	if isShortage(err) {
		return unix.ENOBUFS
	}
	var errno unix.Errno
	if errors.As(err, &errno) && errno != 0 {
		return errno
	}
	return fallback
}
