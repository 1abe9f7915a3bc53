package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	floodBatch   = 32
	floodReceive = 64
	// floodTail is for what is still under way when the sender has stopped.
	floodTail = 150 * time.Millisecond
)

// Flood says how to send UDP datagrams as fast as the sender's core can, and count those that arrive. Each
// is a packet of its own from the sending socket on: no segmentation offload is asked for on either
// side. Zero values: 1,300 bytes, 2 s measured after 0.3 s of warming up.
type Flood struct {
	From, To *Node
	// Addr is the receiver's address, IPv4. With Spread it does not matter.
	Addr netip.Addr
	// Size is the length in bytes of an IP packet, 28 of which are headers.
	Size int
	// Spread, if not nil, sends to many addresses from many addresses.
	Spread *Spread
	// Warmup is the time between the start and the measurement, Duration the length of the measurement.
	Warmup, Duration time.Duration
	// Before and After, if not nil, are called when the measured time begins and ends.
	Before, After func()
}

// A Spread gives every peer a pair of addresses: the packet to peer i goes from the address i of
// Sources to the address i of Targets. The first must be local to the sender, the second to the receiver.
type Spread struct {
	Sources, Targets netip.Prefix
	Peers            int
	// Burst is how many packets in a row go to one peer before it is the next one's turn. The last one is a byte shorter, so that
	// what joins packets of one length ends there with one peer as it does with many. With 0 the peer of each packet is
	// drawn at random.
	Burst int
}

// FloodResult is what became of the packets. Rates are packets per second of the measured time.
type FloodResult struct {
	Offered, Delivered float64
	// Loss is the share of all packets sent, from 0 to 1, that never arrived.
	Loss float64
	// Packets is how many arrived in the measured time.
	Packets uint64
}

// Run sends and counts.
func (f Flood) Run(ctx context.Context) (FloodResult, error) {
	if f.Size == 0 {
		f.Size = 1300
	}
	if f.Warmup == 0 {
		f.Warmup = 300 * time.Millisecond
	}
	if f.Duration == 0 {
		f.Duration = 2 * time.Second
	}
	result, err := f.run(ctx)
	if err != nil {
		return FloodResult{}, fmt.Errorf("flood: %w", err)
	}
	return result, nil
}

func (f Flood) run(ctx context.Context) (FloodResult, error) {
	at := f.Addr
	if f.Spread != nil {
		at = netip.IPv4Unspecified()
	}
	receiver, to, err := openUDP4(f.To, at)
	if err != nil {
		return FloodResult{}, err
	}
	defer unix.Close(receiver)
	sender, _, err := openUDP4(f.From, netip.IPv4Unspecified())
	if err != nil {
		return FloodResult{}, err
	}
	defer unix.Close(sender)
	messages := newMessages(floodBatch, f.Size-ipUDPHeaders, true)
	var spread *spreadMessages
	if f.Spread == nil {
		err = connectUDP4(sender, to)
	} else {
		spread = newSpreadMessages(f.Spread, to.Port(), messages)
	}
	if err != nil {
		return FloodResult{}, err
	}

	var (
		stopSending, stopReceiving atomic.Bool
		sent, arrived              atomic.Uint64
		sending, receiving         sync.WaitGroup
		sendErr, receiveErr        error
	)
	receiving.Go(func() {
		defer stopSending.Store(true)
		receiveErr = receiveFlood(receiver, f.Size, &stopReceiving, &arrived)
	})
	sending.Go(func() { sendErr = sendFlood(sender, messages, spread, &stopSending, &sent) })
	defer receiving.Wait()
	defer sending.Wait()
	defer stopReceiving.Store(true)
	defer stopSending.Store(true)

	if err := sleep(ctx, f.Warmup); err != nil {
		return FloodResult{}, err
	}
	if f.Before != nil {
		f.Before()
	}
	start, sent0, arrived0 := time.Now(), sent.Load(), arrived.Load()
	if err := sleep(ctx, f.Duration); err != nil {
		return FloodResult{}, err
	}
	sent1, arrived1, seconds := sent.Load(), arrived.Load(), time.Since(start).Seconds()
	if f.After != nil {
		f.After()
	}
	stopSending.Store(true)
	sending.Wait()
	if err := sleep(ctx, floodTail); err != nil {
		return FloodResult{}, err
	}
	stopReceiving.Store(true)
	receiving.Wait()
	if err := errors.Join(sendErr, receiveErr); err != nil {
		return FloodResult{}, err
	}
	if arrived1 == arrived0 {
		return FloodResult{}, errors.New("nothing arrived")
	}
	return FloodResult{
		Offered:   float64(sent1-sent0) / seconds,
		Delivered: float64(arrived1-arrived0) / seconds,
		Loss:      1 - float64(arrived.Load())/float64(sent.Load()),
		Packets:   arrived1 - arrived0,
	}, nil
}

func sendFlood(fd int, messages []mmsghdr, spread *spreadMessages, stop *atomic.Bool, sent *atomic.Uint64) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for !stop.Load() {
		if spread != nil {
			spread.next()
		}
		n, err := sendmmsg(fd, messages)
		// What the interface has no room for counts as sent, and lost.
		if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED) {
			n, err = 1, nil
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		sent.Add(uint64(n))
	}
	return nil
}

func receiveFlood(fd, size int, stop *atomic.Bool, arrived *atomic.Uint64) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	messages := newMessages(floodReceive, size, false)
	for !stop.Load() {
		n, err := recvmmsg(fd, messages)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		arrived.Add(uint64(n))
	}
	return nil
}

// packetInfo is an IP_PKTINFO control message, which chooses a packet's source address.
type packetInfo struct {
	header unix.Cmsghdr
	info   unix.Inet4Pktinfo
	_      [4]byte
}

// spreadMessages gives each message of a batch its addresses.
type spreadMessages struct {
	spread           *Spread
	sources, targets uint32
	names            []unix.RawSockaddrInet4
	infos            []packetInfo
	messages         []mmsghdr
	size             int // of a payload, in bytes
	order            *rand.PCG
	peer, left       int
}

func newSpreadMessages(spread *Spread, port uint16, messages []mmsghdr) *spreadMessages {
	s := &spreadMessages{
		spread: spread, sources: number4(spread.Sources.Addr()), targets: number4(spread.Targets.Addr()),
		names: make([]unix.RawSockaddrInet4, len(messages)), infos: make([]packetInfo, len(messages)),
		messages: messages, size: int(messages[0].header.Iov.Len),
		order: rand.NewPCG(1, 2), left: spread.Burst,
	}
	for i := range messages {
		name, info := &s.names[i], &s.infos[i]
		name.Family = unix.AF_INET
		name.Port = port<<8 | port>>8
		info.header.Level, info.header.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		info.header.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		h := &messages[i].header
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(name)), unix.SizeofSockaddrInet4
		h.Control = (*byte)(unsafe.Pointer(info))
		h.SetControllen(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
	}
	return s
}

func (s *spreadMessages) next() {
	for i := range s.names {
		switch {
		case s.spread.Burst == 0:
			s.peer = int(s.order.Uint64() % uint64(s.spread.Peers))
		case s.left == 0:
			s.peer, s.left = (s.peer+1)%s.spread.Peers, s.spread.Burst
		}
		s.left--
		size := s.size
		if s.left == 0 {
			size--
		}
		s.messages[i].header.Iov.SetLen(size)
		put4(&s.names[i].Addr, s.targets+uint32(s.peer))
		put4(&s.infos[i].info.Spec_dst, s.sources+uint32(s.peer))
	}
}

func number4(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func put4(to *[4]byte, n uint32) { *to = [4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }
