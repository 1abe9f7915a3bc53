package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrintPeers(t *testing.T) {
	at := func(seconds int64) *int64 { return &seconds }
	var out strings.Builder
	if err := printPeers(&out, []peerView{
		{ID: 1, Remote: "192.0.2.1:1194", VPN4: "10.8.0.2", VPN6: "fd00::2", LastSeen: at(3), Interval: 10, Timeout: 60,
			Keys: []keyView{{Slot: "primary", ID: 1, Age: at(59)}, {Slot: "secondary", ID: 0, Age: at(3600)}},
			Link: trafficView{RxBytes: 2048, TxBytes: 1}},
		{ID: 2, Keys: []keyView{{Slot: "primary", ID: 7}}},
		{ID: 3},
	}); err != nil {
		t.Fatal(err)
	}
	want := `
PEER   ENDPOINT             VPN ADDRESS        KEYS (AGE)                          LAST SEEN   KEEPALIVE    RECEIVED   SENT
1      udp 192.0.2.1:1194   10.8.0.2 fd00::2   primary 1 (59 s), secondary 0 (1 h)   3 s         10 s, 60 s   2 KiB      1 B
2      tcp                  -                  primary 7 (-)                       -           -            0 B        0 B
3      tcp                  -                  -                                   -           -            0 B        0 B
`
	fields := func(text string) (lines [][]string) {
		for line := range strings.Lines(strings.TrimSpace(text)) {
			lines = append(lines, strings.Fields(line))
		}
		return lines
	}
	if diff := cmp.Diff(fields(want), fields(out.String())); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, out.String())
	}
	header, _, _ := strings.Cut(out.String(), "\n")
	for line := range strings.Lines(out.String()) {
		if at := strings.Index(header, "LAST SEEN"); line[at-3:at] != "   " {
			t.Errorf("the columns do not stand below each other:\n%s", out.String())
		}
	}
}

func TestAgeText(t *testing.T) {
	for seconds, want := range map[int64]string{
		0: "0 s", 59: "59 s", 60: "1 min", 3599: "59 min", 3600: "1 h", 86399: "23 h", 86400: "1 d", 864000: "10 d",
	} {
		if got := ageText(&seconds); got != want {
			t.Errorf("%d seconds are %q, want %q", seconds, got, want)
		}
	}
	if got := ageText(nil); got != "-" {
		t.Errorf("what is not known is %q", got)
	}
}
