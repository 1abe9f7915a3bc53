package netlinksrv

import "golang.org/x/sys/unix"

// Extended acknowledgement attributes (enum nlmsgerr_attrs).
const (
	ackText       = 1 // NLMSGERR_ATTR_MSG
	ackOffset     = 2 // NLMSGERR_ATTR_OFFS
	ackPolicy     = 4 // NLMSGERR_ATTR_POLICY
	ackMissType   = 5 // NLMSGERR_ATTR_MISS_TYPE
	ackMissNest   = 6 // NLMSGERR_ATTR_MISS_NEST
	flagCapped    = 0x100
	flagAckTLVs   = 0x200
	errorCodeSize = 4
)

// ackOptions are the socket options that shape acknowledgements.
type ackOptions struct {
	cap      bool // NETLINK_CAP_ACK: never echo the request
	extended bool // NETLINK_EXT_ACK: say why
}

// acknowledge builds the NLMSG_ERROR message that answers msg: a refusal if err has an errno, an acknowledgement
// otherwise, which err may give a text. port is the requester's port id.
//
//	nlmsghdr | errno, negative | nlmsghdr of the request | its payload, padded | attributes
//
// The payload is there in refusals only, unless capped; the attributes only if the socket asked for them.
func acknowledge(msg []byte, port uint32, err *requestError, opt ackOptions) []byte {
	req := parseHeader(msg)
	h := header{kind: unix.NLMSG_ERROR, seq: req.seq, port: port}
	echo := msg
	if !err.refuses() || opt.cap {
		h.flags |= flagCapped
		echo = msg[:headerSize]
	}
	var tlvs builder
	if opt.extended {
		tlvs.explain(err)
	}
	if len(tlvs.buf) > 0 {
		h.flags |= flagAckTLVs
	}
	var b builder
	start := b.message(h)
	b.errorCode(err)
	b.buf = append(b.buf, echo...)
	b.pad()
	b.buf = append(b.buf, tlvs.buf...)
	b.endMessage(start)
	return b.buf
}

// done builds the NLMSG_DONE message that ends a dump, with the error that ended it if there was one.
func done(req header, port uint32, err *requestError, opt ackOptions) []byte {
	h := header{kind: unix.NLMSG_DONE, flags: unix.NLM_F_MULTI, seq: req.seq, port: port}
	var tlvs builder
	if opt.extended {
		tlvs.explain(err)
	}
	if len(tlvs.buf) > 0 {
		h.flags |= flagAckTLVs
	}
	var b builder
	start := b.message(h)
	b.errorCode(err)
	b.buf = append(b.buf, tlvs.buf...)
	b.endMessage(start)
	return b.buf
}

func (b *builder) errorCode(err *requestError) {
	var code int32
	if err != nil {
		code = -int32(err.errno)
	}
	b.buf = nativeEndian.AppendUint32(b.buf, uint32(code))
}

// explain appends the attributes of an extended acknowledgement, in the kernel's order.
func (b *builder) explain(err *requestError) {
	if err == nil {
		return
	}
	if err.text != "" {
		b.text(ackText, err.text)
	}
	if !err.refuses() {
		return
	}
	if err.bad != 0 {
		b.u32(ackOffset, uint32(err.bad))
	}
	if err.policy != nil {
		b.describe(ackPolicy|unix.NLA_F_NESTED, err.policy, nil)
	}
	if err.missing != 0 {
		b.u32(ackMissType, uint32(err.missing))
	}
	if err.nest != 0 {
		b.u32(ackMissNest, uint32(err.nest))
	}
}
