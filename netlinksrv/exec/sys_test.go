package exec

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The sizes are part of the ioctl numbers and of the kernel's ABI.
func TestLayouts(t *testing.T) {
	for _, test := range []struct {
		name      string
		got, want uintptr
	}{
		{"struct seccomp_notif", unsafe.Sizeof(notification{}), unix.SECCOMP_IOCTL_NOTIF_RECV >> 16 & 0x3fff},
		{"struct seccomp_notif_resp", unsafe.Sizeof(response{}), unix.SECCOMP_IOCTL_NOTIF_SEND >> 16 & 0x3fff},
		{"struct seccomp_notif_addfd", unsafe.Sizeof(addFD{}), seccompNotifAddFD >> 16 & 0x3fff},
		{"struct seccomp_notif_sizes", unsafe.Sizeof(notificationSizes{}), 6},
		{"struct msghdr", unsafe.Sizeof(unix.Msghdr{}), msghdrSize},
		{"struct iovec", unsafe.Sizeof(unix.Iovec{}), iovecSize},
		{"arguments of struct seccomp_data", unsafe.Offsetof(notification{}.args) - unsafe.Offsetof(notification{}.nr), dataArgs},
		{"architecture in struct seccomp_data", unsafe.Offsetof(notification{}.arch) - unsafe.Offsetof(notification{}.nr), dataArch},
	} {
		if test.got != test.want {
			t.Errorf("%s has %d bytes, want %d", test.name, test.got, test.want)
		}
	}
	sizes, err := seccompSizes()
	if err != nil {
		t.Fatal(err)
	}
	if int(sizes.notification) != notificationSpace || int(sizes.response) != responseSpace {
		t.Errorf("the kernel has notifications of %d and answers of %d bytes, we %d and %d", sizes.notification, sizes.response, notificationSpace, responseSpace)
	}
}
