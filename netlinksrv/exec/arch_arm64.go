package exec

import "golang.org/x/sys/unix"

// auditArch is what struct seccomp_data says of our own architecture's system calls.
const auditArch = unix.AUDIT_ARCH_AARCH64

// epollCreateCalls make epoll sets.
var epollCreateCalls = []uint32{unix.SYS_EPOLL_CREATE1}
