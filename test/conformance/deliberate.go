package conformance

// Reason is why this program answers otherwise than the kernel, on purpose.
type Reason struct {
	// Title names the difference in a few words, and Why gives the reason.
	Title, Why string
	// covers says whether a difference is of this sort.
	covers func(*Difference) bool
}

// Deliberate are all reasons, in the order in which they are tried.
var Deliberate = []Reason{}

func reasonFor(d *Difference) *Reason {
	for i := range Deliberate {
		if Deliberate[i].covers(d) {
			return &Deliberate[i]
		}
	}
	return nil
}
