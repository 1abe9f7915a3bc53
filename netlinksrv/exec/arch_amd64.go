package exec

import "golang.org/x/sys/unix"

// auditArch is what struct seccomp_data says of our own architecture's system calls. The x32
// interface shares it, but offsets its call numbers, which therefore match nothing.
const auditArch = unix.AUDIT_ARCH_X86_64

// epollCreateCalls make epoll sets.
var epollCreateCalls = []uint32{unix.SYS_EPOLL_CREATE, unix.SYS_EPOLL_CREATE1}
