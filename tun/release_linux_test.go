package tun

import "testing"

func TestReleases(t *testing.T) {
	for _, row := range []struct {
		text  string
		want  Release
		loses bool // UDP super-frames
	}{
		{"6.2.0", Release{6, 2, 0}, true},
		{"6.6.25", Release{6, 6, 25}, true},
		{"6.6.26-1-lts", Release{6, 6, 26}, false},
		{"6.7.12", Release{6, 7, 12}, true},
		{"6.8.0-45-generic", Release{6, 8, 0}, true},
		{"6.8.5", Release{6, 8, 5}, false},
		{"6.12.48+deb13-amd64", Release{6, 12, 48}, false},
		{"7.1-rc3", Release{7, 1, 0}, false},
		{"7.0.1", Release{7, 0, 1}, false},
		{"", Release{}, true},
		{"unknown", Release{}, true},
	} {
		got := ParseRelease(row.text)
		if got != row.want || losesUSO(got) != row.loses {
			t.Errorf("%q = %v, loses %v; want %v, %v", row.text, got, losesUSO(got), row.want, row.loses)
		}
	}
	if RunningRelease() == (Release{}) {
		t.Error("the running kernel has no version")
	}
}
