package compare

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"ovpn-go/bench/report"
)

// An entry is one case, the contenders that take turns at it, and for how long.
type entry struct {
	report.Case
	setting    setting
	traffic    traffic
	contenders []string
	rounds     int
	duration   time.Duration
}

// A block is a number of cases whose tunnels stand side by side.
type block struct {
	cores   int
	entries []entry
}

// Effort is how long and how often something is measured.
type effort struct {
	rounds   int
	duration time.Duration
}

// standard contenders are in every case of the standard setting.
var standard = []string{report.Ours, report.OursStatic, report.OpenVPN, report.WireGuardGo,
	report.KernelOvpn, report.KernelStatic, report.KernelWG, report.Veth}

// users are the contenders of what is not looked at in full.
var users = []string{report.Ours, report.OpenVPN, report.WireGuardGo, report.KernelOvpn, report.KernelStatic, report.KernelWG}

// plan lays out the whole comparison. What a goal depends on is measured as long and as often as the options say,
// the rest less: three rounds where that is five, and half the time or a quarter of it.
func plan(o Options, cores int) []block {
	goal := effort{o.Rounds, o.Duration}
	side := effort{(3*o.Rounds + 4) / 5, o.Duration / 2}
	cross := effort{side.rounds, o.Duration / 4}
	base := setting{pathMTU: standardMTU, cipher: standardCipher}
	overTCP := base
	overTCP.overTCP = true
	overTCPs := []string{report.Ours, report.OpenVPN, report.KernelOvpn}
	if len(o.Binaries) > 0 {
		return planBinaries(o, base, goal)
	}
	if o.Quick {
		return []block{
			{entries: []entry{
				newEntry(base, tcp(1, true), goal, standard),
				newEntry(base, udp(1300), goal, standard),
				newEntry(base, idle(), goal, standard),
				newEntry(overTCP, tcp(1, true), goal, overTCPs),
			}},
			{entries: []entry{
				newEntry(withPeers(base, 1), toPeers(16), goal, []string{report.OursStatic}),
				newEntry(withPeers(base, 100), toPeers(16), goal, []string{report.OursStatic}),
			}},
		}
	}

	main := block{entries: []entry{
		newEntry(base, tcp(1, true), goal, standard),
		newEntry(base, udp(1300), goal, standard),
		newEntry(base, idle(), effort{goal.rounds, o.Duration / 2}, standard),
	}}
	for _, t := range []traffic{tcp(1, false), tcp(4, true), tcp(4, false), tcp(16, true), tcp(16, false),
		udp(64), udp(512), udp(1400), loaded()} {
		main.entries = append(main.entries, newEntry(base, t, side, standard))
	}
	blocks := []block{main, {entries: []entry{
		newEntry(overTCP, tcp(1, true), side, overTCPs),
		newEntry(overTCP, tcp(4, true), side, overTCPs),
		newEntry(overTCP, udp(1300), side, overTCPs),
		newEntry(overTCP, idle(), side, overTCPs),
	}}}

	var many block
	for _, n := range []int{1, 100, 10000} {
		many.entries = append(many.entries, newEntry(withPeers(base, n), toPeers(16), goal, []string{report.OursStatic}))
		if n > 1 {
			many.entries = append(many.entries, newEntry(withPeers(base, n), toPeers(0), side, []string{report.OursStatic}))
		}
	}
	blocks = append(blocks, many)

	// The full cross product only for ours, the corners for the others.
	corner := func(t traffic) bool { return t.id == tcp(1, true).id || t.id == udp(1300).id }
	for _, mtu := range []int{standardMTU, jumboMTU} {
		for _, cipher := range []string{standardCipher, "AES-128-GCM", "CHACHA20-POLY1305"} {
			s := setting{pathMTU: mtu, cipher: cipher}
			if s == base {
				continue
			}
			var b block
			for _, t := range []traffic{tcp(1, true), tcp(1, false), tcp(4, true), tcp(4, false), tcp(16, true), tcp(16, false),
				udp(64), udp(512), udp(1300), idle()} {
				rivals := []string{report.Ours}
				if corner(t) && (mtu == standardMTU || cipher == standardCipher) {
					rivals = slices.Clone(users)
				}
				if cipher == "AES-128-GCM" {
					// WireGuard has one cipher, which is that of the rows with ChaCha20-Poly1305.
					rivals = slices.DeleteFunc(rivals, func(name string) bool {
						return name == report.WireGuardGo || name == report.KernelWG
					})
				}
				b.entries = append(b.entries, newEntry(s, t, cross, rivals))
			}
			blocks = append(blocks, b)
		}
	}
	for n := 1; n < cores; n *= 2 {
		s := base
		s.cores = n
		var b block
		b.cores = n
		for _, t := range []traffic{tcp(1, true), tcp(4, true), udp(1300)} {
			b.entries = append(b.entries, newEntry(s, t, cross, []string{report.Ours, report.OpenVPN, report.WireGuardGo}))
		}
		blocks = append(blocks, b)
	}
	return blocks
}

// planBinaries compares builds of ours with each other.
func planBinaries(o Options, base setting, e effort) []block {
	var names []string
	for _, b := range o.Binaries {
		names = append(names, b.Name)
	}
	var b block
	for _, t := range []traffic{tcp(1, true), tcp(4, true), udp(64), udp(1300), idle()} {
		b.entries = append(b.entries, newEntry(base, t, e, names))
	}
	return []block{b}
}

func withPeers(s setting, n int) setting {
	s.peers = n
	return s
}

func newEntry(s setting, t traffic, e effort, names []string) entry {
	id, title := t.id, t.title
	if s.peers > 0 {
		id = fmt.Sprintf("peers-%d-%s", s.peers, t.id)
		title = fmt.Sprintf("%d peers, %s", s.peers, t.title)
	}
	add := func(when bool, format string, args ...any) {
		if when {
			text := fmt.Sprintf(format, args...)
			id += "," + strings.ReplaceAll(strings.ToLower(text), " ", "-")
			title += ", " + text
		}
	}
	add(s.cipher != standardCipher, "%s", s.cipher)
	add(s.pathMTU != standardMTU, "MTU %d", s.pathMTU)
	add(s.overTCP, "over TCP")
	add(s.cores > 0, "%d cores", s.cores)
	return entry{
		Case: report.Case{ID: id, Title: title, Metric: t.metric, PathMTU: s.pathMTU, Cipher: s.cipher,
			Cores: s.cores, Peers: max(s.peers, 1), OverTCP: s.overTCP},
		setting: s, traffic: t, contenders: names, rounds: e.rounds, duration: e.duration,
	}
}

// choose leaves the cases whose name the expression matches, and the contenders that are there.
func choose(blocks []block, cases *regexp.Regexp, present func(contender string) bool) []block {
	var chosen []block
	for _, b := range blocks {
		var entries []entry
		for _, e := range b.entries {
			if cases != nil && !cases.MatchString(e.ID) {
				continue
			}
			e.contenders = slices.DeleteFunc(slices.Clone(e.contenders), func(name string) bool { return !present(name) })
			if len(e.contenders) > 0 {
				entries = append(entries, e)
			}
		}
		if len(entries) > 0 {
			chosen = append(chosen, block{b.cores, entries})
		}
	}
	return chosen
}
