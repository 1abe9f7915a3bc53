package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"
)

// ErrCorrupt says that a transfer's bytes did not arrive as they were sent.
var ErrCorrupt = errors.New("the bytes that arrived are not the bytes that were sent")

// Transfer sends bytes over one TCP connection between two namespaces and checks that they arrive
// unchanged.
type Transfer struct {
	From, To *Node
	// Addr is the receiver's address.
	Addr netip.Addr
	// Bytes is how many to send.
	Bytes int64
}

// Run sends pseudo-random bytes, compares their hash at both ends, and is done when the receiver
// has seen the end of the stream or the context ends.
func (t Transfer) Run(ctx context.Context) error {
	if err := t.run(ctx); err != nil {
		return fmt.Errorf("transfer of %d bytes to %v: %w", t.Bytes, t.Addr, err)
	}
	return nil
}

func (t Transfer) run(ctx context.Context) error {
	listener, err := listenTCP(ctx, t.To, t.Addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	// A transfer that stalls ends with the context: closing the sockets fails what blocks on them. A sender may take itself for
	// connected when what it sent last is lost, and nothing is ever accepted.
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var conns closers
	type digest struct {
		sum []byte
		n   int64
		err error
	}
	received := make(chan digest, 1)
	dialCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	sender, err := dialTCP(dialCtx, t.From, listener.Addr())
	if err != nil {
		return err
	}
	conns.add(sender)
	defer sender.Close()
	receiver, err := listener.Accept()
	if err != nil {
		return err
	}
	conns.add(receiver)
	defer receiver.Close()
	stop := context.AfterFunc(ctx, conns.close)
	defer stop()

	go func() {
		h := sha256.New()
		n, err := io.Copy(h, receiver)
		received <- digest{h.Sum(nil), n, err}
	}()
	h := sha256.New()
	source := io.LimitReader(rand.NewChaCha8([32]byte{1}), t.Bytes)
	if _, err := io.Copy(io.MultiWriter(sender, h), source); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	if err := sender.Close(); err != nil {
		return err
	}
	got := <-received
	if got.err != nil {
		return errors.Join(got.err, context.Cause(ctx))
	}
	if got.n != t.Bytes || !bytes.Equal(got.sum, h.Sum(nil)) {
		return fmt.Errorf("%w: %d of %d bytes", ErrCorrupt, got.n, t.Bytes)
	}
	return nil
}
