package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"ovpn-go/bench"
)

// datagrams sends a UDP datagram of each size to an echo server on the other node and checks what comes back.
func datagrams(ctx context.Context, from, to *bench.Node, addr netip.Addr, sizes []int) error {
	var echo, conn net.PacketConn
	any := "0.0.0.0:0"
	if addr.Is6() {
		any = "[::]:0"
	}
	err := to.Do(func() (err error) {
		echo, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer echo.Close()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			// Lost if it can't be sent; the other side waits for it.
			_, _ = echo.WriteTo(buf[:n], from)
		}
	}()
	err = from.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", any)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// A few at a time, so that no socket's buffer overflows. They are told apart by their sizes.
	const atOnce = 16
	buf := make([]byte, 64<<10)
	for len(sizes) > 0 {
		some := sizes[:min(atOnce, len(sizes))]
		sizes = sizes[len(some):]
		missing := map[int]bool{}
		for _, size := range some {
			missing[size] = true
			if _, err := conn.WriteTo(pattern(size), echo.LocalAddr()); err != nil {
				return fmt.Errorf("datagram of %d bytes: %w", size, err)
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		for len(missing) > 0 {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return errors.Join(fmt.Errorf("datagrams of these sizes did not come back: %v: %w", missing, err), ctx.Err())
			}
			if !missing[n] {
				return fmt.Errorf("a datagram of %d bytes came back, expected one of %v", n, missing)
			}
			if !bytes.Equal(buf[:n], pattern(n)) {
				return fmt.Errorf("datagram of %d bytes: %w", n, bench.ErrCorrupt)
			}
			delete(missing, n)
		}
	}
	return nil
}

// pattern is the content of a datagram of that size.
func pattern(size int) []byte {
	b := make([]byte, size)
	source := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8)})
	_, _ = source.Read(b) // never fails
	return b
}

// streams sends bytes over TCP each way over IPv4 and over IPv6.
func streams(ctx context.Context, nodes [2]*bench.Node, addrs [2][2]netip.Addr, bytes int64) error {
	for to := range nodes {
		for _, addr := range addrs[to] {
			if err := (bench.Transfer{From: nodes[1-to], To: nodes[to], Addr: addr, Bytes: bytes}).Run(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// pings sends a few pings of different sizes over IPv4 and IPv6 and wants every one answered.
func pings(ctx context.Context, from *bench.Node, to [2]netip.Addr) error {
	for _, addr := range to {
		for _, payload := range []int{12, 56, 1300, 4000} {
			r, err := bench.Ping{Node: from, To: addr, Count: 5, Interval: 5 * time.Millisecond, Payload: payload, Wait: 10 * time.Second}.Run(ctx)
			if err != nil {
				return err
			}
			if r.Lost() != 0 || r.Duplicates != 0 {
				return fmt.Errorf("of %d pings of %d bytes to %v %d were lost, %d were answered twice", r.Sent, payload, addr, r.Lost(), r.Duplicates)
			}
		}
	}
	return nil
}
