package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// ErrExited is what Log.WaitFor returns when the process ended without having said what was waited
// for.
var ErrExited = errors.New("the process has ended")

// A Log collects what a process prints, standard output and standard error together, line by line.
// It is safe for concurrent use. Its zero value is not usable; a Process carries one.
type Log struct {
	mu      sync.Mutex
	lines   []string      // guarded by mu
	partial []byte        // guarded by mu: an unfinished line
	closed  bool          // guarded by mu: nothing more will come
	changed chan struct{} // guarded by mu: closed and replaced whenever lines or closed change
}

func newLog() *Log { return &Log{changed: make(chan struct{})} }

// Write implements io.Writer and never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, p...)
	for {
		end := bytes.IndexByte(l.partial, '\n')
		if end < 0 {
			break
		}
		l.lines = append(l.lines, strings.TrimRight(string(l.partial[:end]), "\r"))
		l.partial = l.partial[end+1:]
	}
	l.wake()
	return len(p), nil
}

func (l *Log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.partial) > 0 {
		l.lines = append(l.lines, string(l.partial))
		l.partial = nil
	}
	l.closed = true
	l.wake()
}

func (l *Log) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Mark returns the number of lines so far: a place to begin a later WaitFor.
func (l *Log) Mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// Contains reports whether a line holds the text.
func (l *Log) Contains(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _, ok := find(l.lines, 0, text)
	return ok
}

// Match returns the expression's submatches for every line it matches, from the mark on.
func (l *Log) Match(mark int, re *regexp.Regexp) [][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all [][]string
	for _, line := range l.lines[min(mark, len(l.lines)):] {
		if m := re.FindStringSubmatch(line); m != nil {
			all = append(all, m)
		}
	}
	return all
}

// Tail returns the last n lines.
func (l *Log) Tail(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines[max(0, len(l.lines)-n):], "\n")
}

// WaitFor waits until a line at or after the mark holds the text and returns the line, and the mark
// of the line behind it. Its error carries the log's last lines and is the context's, or ErrExited.
func (l *Log) WaitFor(ctx context.Context, mark int, text string) (line string, next int, err error) {
	for {
		l.mu.Lock()
		line, at, ok := find(l.lines, mark, text)
		closed, changed := l.closed, l.changed
		mark = max(mark, len(l.lines))
		l.mu.Unlock()
		if ok {
			return line, at + 1, nil
		}
		if closed {
			return "", 0, l.waitError(text, ErrExited)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", 0, l.waitError(text, context.Cause(ctx))
		}
	}
}

func (l *Log) waitError(text string, err error) error {
	return fmt.Errorf("wait for %q: %w; the log's last lines:\n%s", text, err, l.Tail(40))
}

func find(lines []string, from int, text string) (line string, at int, ok bool) {
	for i := from; i < len(lines); i++ {
		if strings.Contains(lines[i], text) {
			return lines[i], i, true
		}
	}
	return "", 0, false
}
