package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ovpn-go/bench"
	"ovpn-go/bench/benchtest"
)

// containerVariable makes the test binary run its arguments in a container instead. Its value is a container in JSON.
const containerVariable = "OVPN_GO_TEST_CONTAINER"

// A restricted container is what `docker run --device /dev/net/tun --cap-add NET_ADMIN` makes, by the OCI runtime crun, with the tests'
// Debian tree as the image. It is in the network namespace in which it is started.
type restricted struct {
	// Name is the container's, State a directory for crun.
	Name, State string
	// Root is the image, Program our binary's path in it.
	Root, Program string
	// Forbidden are system calls that Docker's profile allows and this one does not.
	Forbidden []string
	// Holder is a process whose user and network namespaces the container has, as with rootless Podman, if not 0. Without one
	// it has the user namespace of the machine.
	Holder int
}

func init() {
	text := os.Getenv(containerVariable)
	if text == "" {
		return
	}
	runtime.LockOSThread()
	var c restricted
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = c.become(os.Args[1:])
	}
	fmt.Fprintln(os.Stderr, "become a container:", err)
	os.Exit(99)
}

// become replaces the process by crun with a container in which our program runs with arguments. It only returns with an error.
func (c restricted) become(arguments []string) error {
	// The launcher's way into the tree; here the tree is the root.
	if i := slices.Index(arguments, "chroot"); i >= 0 {
		arguments = slices.Delete(arguments, i, i+2)
	}
	bundle := filepath.Join(c.State, c.Name)
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(c.config(append([]string{c.Program}, arguments...)))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644); err != nil {
		return err
	}
	// crun looks for control groups of one version, though it is told to make none. Where the machine has both it
	// sees one only.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount control groups: %w", err)
	}
	crun, err := exec.LookPath("crun")
	if err != nil {
		return err
	}
	return unix.Exec(crun, []string{"crun", "--root", filepath.Join(c.State, "run"), "--cgroup-manager=disabled",
		"run", "--bundle", bundle, c.Name}, []string{"PATH=" + os.Getenv("PATH")})
}

// requireCrun skips a test where there is no crun.
func requireCrun(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("crun"); err != nil {
		benchtest.Missing(t, "crun is missing; install it with: apt-get install crun")
	}
}

// restrictedAt is a placement in a restricted container of its own.
func (s *scenario) restrictedAt(node *bench.Node, name string, change func(*restricted)) bench.Placement {
	s.Helper()
	requireCrun(s.T)
	program := filepath.Join(s.Dir(), "ovpn-go")
	if _, err := os.Stat(program); err != nil {
		if err := os.Link(s.prefix[0], program); err != nil {
			s.Fatal(err)
		}
	}
	c := restricted{Name: name, State: s.TempDir(), Root: bench.TestRoot(), Program: s.Inside("ovpn-go")}
	if change != nil {
		change(&c)
	}
	text, err := json.Marshal(c)
	if err != nil {
		s.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		s.Fatal(err)
	}
	return bench.Placement{Node: node, Prefix: append([]string{self}, s.prefix[1:]...), Env: []string{containerVariable + "=" + string(text)}}
}

// An object is one in JSON.
type object map[string]any

// dockerCapabilities are those of `docker run` without options, and the one that is asked for.
var dockerCapabilities = prefixed("CAP_", "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "+
	"NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE NET_ADMIN")

func prefixed(prefix, names string) []string {
	list := strings.Fields(names)
	for i := range list {
		list[i] = prefix + list[i]
	}
	return list
}

// config is the container's config.json, as Docker writes it.
func (c restricted) config(arguments []string) object {
	mounts := []object{
		{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"nosuid", "noexec", "nodev", "ro"}},
		{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
	}
	devices := []object{{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666, "uid": 0, "gid": 0}}
	namespaces := []object{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}
	if c.Holder != 0 {
		for kind, file := range map[string]string{"user": "user", "network": "net"} {
			namespaces = append(namespaces, object{"type": kind, "path": fmt.Sprintf("/proc/%d/ns/%s", c.Holder, file)})
		}
		// A device can't be made there, but shown.
		devices = nil
		mounts = append(mounts, object{"destination": "/dev/net/tun", "type": "bind", "source": "/dev/net/tun",
			"options": []string{"bind", "nosuid", "noexec"}})
	}
	return object{
		"ociVersion": "1.0.0",
		"process": object{
			"user": object{"uid": 0, "gid": 0},
			"args": arguments,
			"env":  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			"cwd":  "/",
			"capabilities": object{
				"bounding": dockerCapabilities, "effective": dockerCapabilities, "permitted": dockerCapabilities},
		},
		"root":     object{"path": c.Root, "readonly": true},
		"hostname": c.Name,
		"mounts":   mounts,
		"linux": object{
			"namespaces": namespaces,
			"devices":    devices,
			"seccomp":    c.profile(),
			"maskedPaths": []string{"/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware",
				"/sys/devices/virtual/powercap"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// profile is Docker's default seccomp profile for dockerCapabilities, on Linux 4.8 and later: what it does not name fails with
// EPERM.
func (c restricted) profile() object {
	const (
		allow         = "SCMP_ACT_ALLOW"
		newNamespaces = 0x7e020000 // clone's flags
	)
	names := slices.DeleteFunc(strings.Fields(dockerAllowed), func(name string) bool { return slices.Contains(c.Forbidden, name) })
	calls := []object{{"names": names, "action": allow}}
	where := func(name string, args ...object) {
		calls = append(calls, object{"names": []string{name}, "action": allow, "args": args})
	}
	is := func(op string, value int64) object { return object{"index": 0, "op": "SCMP_CMP_" + op, "value": value} }
	// All families but AF_ALG, 38, and AF_VSOCK, 40.
	where("socket", is("LT", unix.AF_ALG))
	where("socket", is("EQ", 39))
	where("socket", is("GT", unix.AF_VSOCK))
	for _, value := range []int64{0, 0x8, 0x20000, 0x20008, 0xffffffff} {
		where("personality", is("EQ", value))
	}
	where("clone", object{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": newNamespaces, "valueTwo": 0})
	calls = append(calls, object{"names": []string{"clone3"}, "action": "SCMP_ACT_ERRNO", "errnoRet": int(unix.ENOSYS)})
	architectures := []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"}
	if runtime.GOARCH == "arm64" {
		architectures = []string{"SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"}
	}
	return object{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": int(unix.EPERM), "architectures": architectures, "syscalls": calls}
}

// dockerAllowed are the system calls of 64-bit programs that the profile allows whatever their arguments. pidfd_getfd, setns and
// unshare are not among them.
const dockerAllowed = `
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown clock_adjtime
clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod
fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr
fstat fstatat64 fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat
get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer
getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage
getsid getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl
ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr
link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal
msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat
openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl
pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink
readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat
renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt
setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice
stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create
timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write
writev

process_vm_readv process_vm_writev ptrace arch_prctl modify_ldt chroot`
