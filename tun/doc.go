// Package tun is the interface of a VPN device: a Linux TUN device in a network namespace of the
// caller's choice, its queues, and the segmentation and checksum offloads that let one system call
// carry up to 64 KiB of packets. It knows IP, TCP and UDP headers; it knows no peers and no keys.
//
// # The life of a packet
//
// From the stack to a tunnel:
//
//  1. [Queue.Read] fills the worker's frame: a virtio-net header and one packet, which may be a
//     TCP or UDP super-frame whose segments the stack left to the "device".
//  2. [Splitter.Reset] checks the frame. [Splitter.Next] completes one packet at a time inside the
//     frame's memory: headers rewritten, checksums filled.
//  3. The caller seals that packet into a buffer of its own before it asks for the next one, whose
//     header overwrites the end of this one.
//
// From a tunnel to the stack:
//
//  1. [Coalescer.Next] says where the next plaintext belongs: inside the Coalescer's frame, so that
//     its payload lands right behind the payload of the flow that is being gathered.
//  2. The caller opens the packet into it, then says [Coalescer.Commit] or [Coalescer.Abandon].
//  3. The frame is written when its flow ends or changes, when it is full, or on
//     [Coalescer.Flush]. A frame of several packets carries a virtio-net header that tells the stack
//     how to take it apart again; after any segmentation the stack sees the committed packets.
//
// Nothing on either way allocates, locks or blocks. A Splitter, a Coalescer and a Queue belong to
// one goroutine at a time.
//
// # Why golang.zx2c4.com/wireguard/tun is not underneath
//
// Its Read and Write copy every packet into buffers of their own, it keeps what it learned about
// the offloads to itself, and it can create neither an exclusive nor a multi-queue device, so after
// all that remains to be done by hand there is nothing left for it to do; the tests run it as the
// other end of a link instead, as a second opinion on every frame.
package tun
