package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// registerPprof adds the flag whose value servePprof takes.
func registerPprof(flags *pflag.FlagSet, addr *string) {
	flags.StringVar(addr, "pprof", "", "serve profiles of this program, as net/http/pprof does, at this loopback address and port, or UNIX socket of its owner's")
}

// servePprof serves the profiles until the function it returns is called. addr is a loopback address with a port, or the absolute
// path of a socket that only this user may use; where it is empty there is nothing to do.
func servePprof(addr string) (end func() error, err error) {
	if addr == "" {
		return func() error { return nil }, nil
	}
	listener, err := listenPprof(addr)
	if err != nil {
		return nil, fmt.Errorf("--pprof: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	return func() error {
		err := server.Close()
		if served := <-done; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}, nil
}

func listenPprof(addr string) (net.Listener, error) {
	if filepath.IsAbs(addr) {
		// Nobody else may connect, not even before the mode could be changed.
		old := unix.Umask(0o177)
		defer unix.Umask(old)
		return net.Listen("unix", addr)
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%q: must be a loopback address and port, or the absolute path of a socket", addr)
	}
	if !ap.Addr().Unmap().IsLoopback() {
		return nil, fmt.Errorf("%v: others could connect: must be a loopback address", ap)
	}
	return net.Listen("tcp", ap.String())
}
