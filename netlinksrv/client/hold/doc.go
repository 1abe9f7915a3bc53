// Package hold keeps transport sockets open for peers that were added by a program that has ended.
//
// A peer lives as long as its transport socket, so somebody has to hold that. OpenVPN does it by itself. For peers added
// by hand a small process does, a holder: one per UDP address, for all the peers that use it, and one per TCP connection. It is found
// by the name of a UNIX socket, which like addresses belongs to one network namespace, and ends when the last of its peers is gone.
package hold
