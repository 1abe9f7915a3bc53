package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

var legacyCalls = []uint32{unix.SYS_RENAMEAT, unix.SYS_KEXEC_FILE_LOAD}
