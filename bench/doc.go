// Package bench is the side-by-side harness: network namespaces joined by veth pairs, real OpenVPN
// processes in them, and measurements through the tunnels they build. The demo, the end-to-end
// tests and the throughput comparisons are all written on top of it.
//
// Nothing it makes outlives the process that made it. Namespaces are anonymous and end with their
// last reference; the mounts a chroot needs exist only in the mount namespace of one thread; every
// process it starts is killed by the kernel when that thread ends. So a Close that was never
// reached, because the caller was killed, leaves nothing behind either.
//
// The package may import every other room and is imported by the command and the tests only.
package bench
