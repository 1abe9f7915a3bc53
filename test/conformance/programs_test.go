package conformance

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The report takes what the runs of programs say, and nothing else.
func TestProgramsIn(t *testing.T) {
	for _, tt := range []struct {
		rule, output string
		want         []Program
		bad          bool
	}{
		{"one passes, one fails", `{"Action":"run","Test":"TestX/a"}
{"Action":"output","Test":"TestX/a","Output":"noise"}
{"Action":"pass","Test":"TestX/a"}
{"Action":"fail","Test":"TestX/b"}
{"Action":"fail","Test":"TestX"}
{"Action":"fail"}`, []Program{{Name: "a", Passed: true}, {Name: "b"}, {}}, false},
		{"skipped", `{"Action":"skip","Test":"TestX"}`, nil, true},
		{"did not run", `{"Action":"pass"}`, nil, true},
		{"no output", "", nil, true},
		{"no JSON", "FAIL", nil, true},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			got, err := programsIn([]byte(tt.output), "TestX")
			if (err != nil) != tt.bad {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("programs (-want +got):\n%s", diff)
			}
		})
	}
}
