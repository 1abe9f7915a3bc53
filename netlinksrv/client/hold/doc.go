// Package hold keeps UDP transport sockets open for peers that were added by a program that has ended.
//
// A peer lives as long as its transport socket, so somebody has to hold that. OpenVPN does it by itself. For peers added
// by hand a small process does, a holder: one per address, for all the peers that use it. It is found by the name of a UNIX
// socket, which like the address belongs to one network namespace, and ends when the last of its peers is gone.
package hold
