// Package mixed puts the kernel's module at one end of a tunnel and this program at the other, and judges what passes
// between them.
//
// Both run in the oracle's virtual machine, in namespaces joined by veth pairs: one end's process speaks netlink to
// the kernel, the other's is the same process under "ovpn-go exec". The program in the folder runner makes the tunnels,
// by its own netlink messages and with real OpenVPN, and writes a record of claims, which become this package's
// subtests. Times in there are those of an emulated machine.
package mixed
