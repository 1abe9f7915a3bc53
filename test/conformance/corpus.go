package conformance

import "ovpn-go/test/conformance/script"

// Corpus returns the written sequences: for every rule of the family requests that obey it and requests that break
// it in each way there is, in the state that the rule is about.
func Corpus() []script.Sequence { return corpus(profiles) }

// Sample is Corpus with fewer combinations of socket options.
func Sample() []script.Sequence { return corpus([]profile{extended, capped}) }

func corpus(profiles []profile) []script.Sequence {
	var all []script.Sequence
	for _, p := range profiles {
		for _, w := range [][]*writer{
			coreSequences(p), policySequences(p), interfaceSequences(p), peerSequences(p), keySequences(p),
			dumpSequences(p), controllerSequences(p),
		} {
			for _, w := range w {
				all = append(all, w.Sequence)
			}
		}
	}
	for _, w := range [][]*writer{linkSequences(), noticeSequences(), rightsSequences(), namespaceSequences(), optionSequences()} {
		for _, w := range w {
			all = append(all, w.Sequence)
		}
	}
	return all
}

// Requests counts the datagrams that sequences send.
func Requests(sequences []script.Sequence) int {
	n := 0
	for _, s := range sequences {
		for _, step := range s.Steps {
			if step.Action == script.Send {
				n++
			}
		}
	}
	return n
}
