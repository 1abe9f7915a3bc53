// Package record is what the runner in the virtual machine tells the test outside: claims about tunnels between the
// kernel's module and this program, and which of them hold. It is written as JSON.
package record

// Claim is something that must be so.
type Claim struct {
	// Name says what, as a path from the general to the particular.
	Name string `json:"name"`
	// Error says why it is not so; empty if it is.
	Error string `json:"error,omitempty"`
	// Notes are what was measured on the way.
	Notes []string `json:"notes,omitempty"`
	// Seconds is how long it took to find out, in the time of the machine.
	Seconds float64 `json:"seconds"`
}
