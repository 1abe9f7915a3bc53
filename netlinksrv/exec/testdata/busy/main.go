// Program busy makes system calls without a pause until it gets a record from its descriptor 3, to which it first says that it
// runs. The tests build it for another architecture.
package main

import (
	"os"
	"syscall"
)

func main() {
	const fd = 3
	if _, err := syscall.Write(fd, []byte{1}); err != nil {
		os.Exit(1)
	}
	buf := make([]byte, 100)
	for {
		n, _, err := syscall.Recvfrom(fd, buf, syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EAGAIN, err == syscall.EINTR:
			continue
		case err != nil || n <= 0:
			os.Exit(1)
		}
		return
	}
}
