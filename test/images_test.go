package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"ovpn-go/bench/benchtest"
)

const imagesDir = "../docs/container"

// instructions returns the instructions of a Containerfile, with lines that are continued joined.
func instructions(t *testing.T, name string) (list [][2]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(imagesDir, name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		instruction, rest, _ := strings.Cut(line, " ")
		list = append(list, [2]string{instruction, rest})
	}
	return list
}

// only returns what the one instruction of a kind says.
func only(t *testing.T, list [][2]string, instruction string) (says string) {
	t.Helper()
	found := 0
	for _, i := range list {
		if i[0] == instruction {
			says = i[1]
			found++
		}
	}
	if found != 1 {
		t.Fatalf("%d instructions %s, want one", found, instruction)
	}
	return says
}

// command returns the words of an instruction in JSON.
func command(t *testing.T, list [][2]string, instruction string) (words []string) {
	t.Helper()
	if err := json.Unmarshal([]byte(only(t, list, instruction)), &words); err != nil {
		t.Fatalf("%s: %v", instruction, err)
	}
	return words
}

// TestScratchImage runs the image of the program alone, made by hand as its Containerfile says, under Docker's profile: the
// program needs no other file, and a client runs under it.
func TestScratchImage(t *testing.T) {
	t.Parallel()
	benchtest.Root(t)
	requireCrun(t)
	program, err := plainBinary()
	if err != nil {
		t.Fatal(err)
	}
	file := instructions(t, "Containerfile")
	if base := only(t, file, "FROM"); base != "scratch" {
		t.Fatalf("image is made from %s", base)
	}
	from, to, _ := strings.Cut(only(t, file, "COPY"), " ")
	if from != "bin/ovpn-go" {
		t.Fatalf("%s is copied, `make build` makes bin/ovpn-go", from)
	}
	root := t.TempDir()
	if err := os.Link(program, filepath.Join(root, to)); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	entry := command(t, file, "ENTRYPOINT")
	text, err := json.Marshal(restricted{Name: "doctor", State: t.TempDir(), Root: root, Program: entry[0]})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, slices.Concat(entry[1:], command(t, file, "CMD"), []string{"--json"})...)
	cmd.Env = append(os.Environ(), containerVariable+"="+string(text))
	var out []byte
	star := benchtest.Star(t, 1)
	err = star.Clients[0].Do(func() (err error) { out, err = cmd.Output(); return err })
	const degraded = 1
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != degraded {
		t.Errorf("doctor: %v, want exit status %d", err, degraded)
	}
	var findings []finding
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var worse []string
	for _, f := range findings {
		if f.Severity != "ok" {
			worse = append(worse, f.Check)
		}
	}
	if diff := cmp.Diff([]string{"client's descriptors", "namespaces"}, worse); diff != "" {
		t.Errorf("what doctor finds fault with (-want +got):\n%s%s", diff, out)
	}
}

// TestOpenVPNImage checks that the image starts what TestRestricted starts.
func TestOpenVPNImage(t *testing.T) {
	file := instructions(t, "Containerfile.openvpn")
	from, to, _ := strings.Cut(only(t, file, "COPY"), " ")
	if from != "bin/ovpn-go" {
		t.Errorf("%s is copied, `make build` makes bin/ovpn-go", from)
	}
	want := []string{to, "exec", "--", "/usr/sbin/openvpn", "--config", "/etc/openvpn/openvpn.conf"}
	if diff := cmp.Diff(want, slices.Concat(command(t, file, "ENTRYPOINT"), command(t, file, "CMD"))); diff != "" {
		t.Errorf("what the image runs (-want +got):\n%s", diff)
	}
}

// example decodes a YAML file; what the structure does not name is an error.
func example(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(imagesDir, name))
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// TestComposeExample: the services with a tunnel have the TUN device and CAP_NET_ADMIN, as TestRestricted's containers have, and
// nothing else that Docker would not give them.
func TestComposeExample(t *testing.T) {
	var file struct {
		Services map[string]struct {
			Build struct{ Context, Dockerfile string }
			Image string

			Devices []string
			CapAdd  []string `yaml:"cap_add"`
			Sysctls map[string]string

			Command     []string
			Volumes     []string
			Ports       []string
			Restart     string
			NetworkMode string   `yaml:"network_mode"`
			DependsOn   []string `yaml:"depends_on"`
		}
	}
	example(t, "compose.yaml", &file)
	tunnels := 0
	for name, service := range file.Services {
		if other, ok := strings.CutPrefix(service.NetworkMode, "service:"); ok {
			if _, ok := file.Services[other]; !ok || !slices.Contains(service.DependsOn, other) {
				t.Errorf("%s has the network of %s, on which it must depend", name, other)
			}
		}
		if service.Image != "" {
			continue
		}
		tunnels++
		containerfile := filepath.Join(imagesDir, service.Build.Context, service.Build.Dockerfile)
		if _, err := os.Stat(containerfile); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"NET_ADMIN"}, service.CapAdd); diff != "" {
			t.Errorf("%s: capabilities (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff([]string{"/dev/net/tun:/dev/net/tun"}, service.Devices); diff != "" {
			t.Errorf("%s: devices (-want +got):\n%s", name, diff)
		}
		if !slices.ContainsFunc(service.Volumes, func(v string) bool { return strings.HasSuffix(v, ":/etc/openvpn:ro") }) {
			t.Errorf("%s has no configuration", name)
		}
	}
	if tunnels != 2 {
		t.Errorf("%d services with a tunnel, want a server and a client", tunnels)
	}
}

// TestKubernetesExample: likewise, under the runtime's own seccomp profile.
func TestKubernetesExample(t *testing.T) {
	type volumeMount struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
	type container struct {
		Name, Image     string
		Command         []string
		SecurityContext *struct {
			SeccompProfile           struct{ Type string } `yaml:"seccompProfile"`
			AllowPrivilegeEscalation *bool                 `yaml:"allowPrivilegeEscalation"`
			Capabilities             struct{ Add []string }
		} `yaml:"securityContext"`
		VolumeMounts []volumeMount `yaml:"volumeMounts"`
	}
	var pod struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
		Spec       struct {
			Containers []container
			Volumes    []struct {
				Name     string
				HostPath *struct{ Path, Type string } `yaml:"hostPath"`
				Secret   *struct {
					SecretName string `yaml:"secretName"`
				}
			}
		}
	}
	example(t, "kubernetes.yaml", &pod)
	if pod.APIVersion != "v1" || pod.Kind != "Pod" || len(pod.Spec.Containers) == 0 {
		t.Fatalf("%+v is no pod", pod)
	}
	tunnel := pod.Spec.Containers[0]
	if s := tunnel.SecurityContext; s == nil || s.SeccompProfile.Type != "RuntimeDefault" || !slices.Equal(s.Capabilities.Add, []string{"NET_ADMIN"}) {
		t.Errorf("the tunnel's security context is %+v", s)
	}
	volumes := map[string]bool{}
	for _, volume := range pod.Spec.Volumes {
		volumes[volume.Name] = volume.HostPath == nil
		if h := volume.HostPath; h != nil && (h.Path != "/dev/net/tun" || h.Type != "CharDevice") {
			t.Errorf("volume %+v", volume)
		}
	}
	var at []string
	for _, mount := range tunnel.VolumeMounts {
		if _, ok := volumes[mount.Name]; !ok {
			t.Errorf("there is no volume %s", mount.Name)
		}
		at = append(at, mount.MountPath)
	}
	if diff := cmp.Diff([]string{"/dev/net/tun", "/etc/openvpn"}, at); diff != "" {
		t.Errorf("mounts (-want +got):\n%s", diff)
	}
}
