package conformance

import (
	"slices"
	"strings"
	"time"

	"ovpn-go/test/conformance/script"
)

// loggedLines is how many lines logged returns at most, the last ones.
const loggedLines = 200

// ordinary are parts of those lines of the log that say nothing: modelled sequences ask for all peers and keys after each
// operation.
var ordinary = []string{`message="peer-get `, `message="key-get `, "error=<nil>", "cannot extract key"}

// logged returns what our program has logged during some steps, and up to a second later: what is waited for in vain need
// not have gone wrong at once.
func logged(log string, during []script.Outcome) string {
	if len(during) == 0 {
		return ""
	}
	// The log tells milliseconds, cut off.
	from, to := during[0].Began.Truncate(time.Millisecond), during[len(during)-1].Began.Add(time.Second)
	var lines []string
	var at time.Time
	for line := range strings.Lines(log) {
		if text, ok := strings.CutPrefix(line, "time="); ok { // what else there is belongs to the line before it
			text, _, _ = strings.Cut(text, " ")
			if parsed, err := time.Parse(time.RFC3339, text); err == nil {
				at = parsed
			}
		}
		isOrdinary := slices.ContainsFunc(ordinary, func(part string) bool { return strings.Contains(line, part) })
		if !at.Before(from) && !at.After(to) && !isOrdinary {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-loggedLines):], "")
}
