// Package confine takes from the running program what it does not need, and from others the sight of its memory, which
// holds keys. It knows nothing of what the program does.
//
// What it changes belongs to the process, all its threads included, for as long as it runs. Each function says which of
// its effects programs that are started afterwards inherit.
package confine
