package confine

import (
	"os"

	"golang.org/x/sys/unix"
)

// HideMemory keeps the process's memory to itself: none of it gets into a core file, and nobody who lacks CAP_SYS_PTRACE
// may trace the process, read its memory or take its descriptors, even as the same user.
//
// The limit on core files is inherited. It does not hold for a program that the kernel pipes cores to, which is why the
// process is made one that can't be dumped as well; a program that it executes can.
func HideMemory() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit RLIMIT_CORE", err)
	}
	return os.NewSyscallError("prctl PR_SET_DUMPABLE", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// LockMemory keeps all of the process's memory, once it is used, out of swap space. It takes a limit on locked memory
// that is unlimited, or may be made so, and changes nothing where that can't be had: under any other limit the Go
// runtime would find itself without memory one day. CAP_IPC_LOCK alone does not do, as it counts for each thread, and
// threads give up capabilities for a while.
//
// The raised limit is inherited, the lock is not.
func LockMemory() error {
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		return os.NewSyscallError("setrlimit RLIMIT_MEMLOCK", err)
	}
	// Address space that the runtime only reserves must not be filled with memory: MCL_ONFAULT.
	return os.NewSyscallError("mlockall", unix.Mlockall(unix.MCL_CURRENT|unix.MCL_FUTURE|unix.MCL_ONFAULT))
}
