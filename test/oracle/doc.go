// Package oracle runs programs on a Linux kernel that has the real ovpn module, in a virtual machine, so that what
// this project says about the module's behaviour can be asked of the module itself.
//
// The machine is emulated by QEMU, without network and without a disk; build.sh makes its kernel image and initrd
// from Debian's packages. A job is a few files that are appended to the initrd, and its results come back over a virtio
// port. Nothing is left on the host when [Machine.Run] returns.
//
// The command in the folder machine runs any command line in it.
package oracle
