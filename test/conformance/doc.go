// Package conformance asks a kernel that has the ovpn module and this program the same questions, and compares the
// answers byte for byte.
//
// [Corpus] and [Random] make sequences of netlink requests. The program in the folder runner carries them out and
// writes down what it receives; it runs once in the oracle's virtual machine, where the module answers, and once
// under "ovpn-go exec". [Compare] masks what must differ (ids that are given out as it comes: family, group, ports,
// interfaces) and finds what else does. Differences on purpose are listed in [Deliberate], each with its reason.
package conformance
