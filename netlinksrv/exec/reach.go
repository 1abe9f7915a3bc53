package exec

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Reach is what the supervisor may do to the processes below it. The default seccomp profiles of containers, and harder
// ones, forbid the direct ways; whether they do is tried, as nothing tells.
type Reach struct {
	// NoDescriptors is why no descriptor can be taken from a process (pidfd_getfd), nil if one can: then a
	// duplicate is kept of whatever may be asked for (kept.go).
	NoDescriptors error
	// NoMemory is why no memory can be copied directly (process_vm_readv, process_vm_writev), nil if it can: then
	// it is read and written as a file, /proc/PID/mem.
	NoMemory error
	// NoMemoryFile is why that can't be done either. It is nil if it need not be.
	NoMemoryFile error
}

// Probe tries what can be done to a process of ours. It changes nothing there.
func Probe(pid int) Reach {
	r := Reach{NoDescriptors: probeDescriptors(pid), NoMemory: probeMemory(pid)}
	if r.NoMemory != nil {
		var b [1]byte
		if _, err := r.read(pid, b[:], 0); !errors.Is(err, unix.EFAULT) {
			r.NoMemoryFile = fmt.Errorf("read memory as a file: %w", err)
		}
	}
	return r
}

func probeDescriptors(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	const standardInput = 0
	fd, err := unix.PidfdGetfd(pidfd, standardInput, 0)
	switch {
	case err == nil:
		unix.Close(fd)
	case !errors.Is(err, unix.EBADF): // which says that looking was allowed
		return os.NewSyscallError("pidfd_getfd", err)
	}
	return nil
}

// probeMemory asks for an address that is never mapped: EFAULT says that looking was allowed.
func probeMemory(pid int) error {
	var b [1]byte
	if _, err := readProcess(pid, b[:], 0); err != unix.EFAULT {
		return fmt.Errorf("process_vm_readv: %w", err)
	}
	if _, err := writeProcess(pid, b[:], 0); err != unix.EFAULT {
		return fmt.Errorf("process_vm_writev: %w", err)
	}
	return nil
}

// read copies from the memory of a thread's process and returns how much it could copy.
func (r Reach) read(tid int, dst []byte, address uint64) (int, error) {
	if r.NoMemory == nil {
		return readProcess(tid, dst, address)
	}
	return throughFile(tid, os.O_RDONLY, len(dst), address, func(file *os.File) (int, error) { return file.ReadAt(dst, int64(address)) })
}

// write copies into the memory of a thread's process and returns how much it could copy. Through the file it
// also reaches pages that the process itself can't write to, as a debugger does.
func (r Reach) write(tid int, src []byte, address uint64) (int, error) {
	if r.NoMemory == nil {
		return writeProcess(tid, src, address)
	}
	return throughFile(tid, os.O_WRONLY, len(src), address, func(file *os.File) (int, error) { return file.WriteAt(src, int64(address)) })
}

// throughFile copies size bytes from or to an address of a thread's memory as a file. An address that is not there is unix.EFAULT.
func throughFile(tid, mode, size int, address uint64, transfer func(*os.File) (int, error)) (int, error) {
	if size == 0 {
		return 0, nil
	}
	file, err := os.OpenFile("/proc/"+strconv.Itoa(tid)+"/mem", mode, 0)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	n, err := transfer(file)
	switch {
	case n > 0:
		return n, nil
	case errors.Is(err, unix.EIO), int64(address) < 0: // which no file has
		return 0, unix.EFAULT
	}
	return 0, err
}
