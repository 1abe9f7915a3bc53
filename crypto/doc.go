// Package crypto turns plaintext into DATA_V2 packets and back.
//
// It owns the packet's framing (opcode word, packet id, tag in front of the ciphertext), the AEAD
// ciphers, the packet ids that a key may still spend, the replay window of what it has received,
// and the two key slots of a peer. It is bytes in, bytes out.
//
// It must not know sockets, peers, netlink or the clock: the caller says which packet id to seal
// with and what time it is.
//
// A packet is sealed like this, by the one that owns its buffer:
//
//	key := slots.Primary()
//	first, granted := key.Reserve(n)                     // one block of packet ids per batch
//	key.Seal(datagram, plaintext, op, first)             // and first+1, ...
//
// and opened like this:
//
//	key := slots.ByID(crypto.KeyID(datagram[0]))
//	err := key.Open(plaintext, datagram)
//	fresh := key.Accept(packetID, now)                   // packetID read before Open
//
// None of these calls allocates, and none of them blocks: Accept holds a mutex for a few
// nanoseconds, everything else is an atomic load or add.
package crypto
