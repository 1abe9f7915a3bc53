package client

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestStaticKeyRoundTrip(t *testing.T) {
	k := GenerateStaticKey()
	text, err := k.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseStaticKey(text)
	if err != nil {
		t.Fatal(err)
	}
	if again.secret != k.secret {
		t.Error("the key is another one after it was written and read")
	}
	if other := GenerateStaticKey(); other.secret == k.secret {
		t.Error("two generated keys are the same")
	}
}

// What one end encrypts with the other decrypts with, and the bytes are those that OpenVPN would take.
func TestStaticKeyDirections(t *testing.T) {
	var body strings.Builder
	for i := range 256 {
		fmt.Fprintf(&body, "%02x", i)
		if i%16 == 15 {
			body.WriteByte('\n')
		}
	}
	k, err := ParseStaticKey([]byte("#\n# 2048 bit OpenVPN static key\n#\n" + staticKeyBegin + "\n" + body.String() + staticKeyEnd + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	count := func(from, n int) (b []byte) {
		for i := range n {
			b = append(b, byte(from+i))
		}
		return b
	}
	for _, size := range []int{16, 24, 32} {
		encrypt0, decrypt0 := k.Directions(0, size)
		encrypt1, decrypt1 := k.Directions(1, size)
		for _, row := range []struct {
			name      string
			direction Direction
			from      int
		}{
			{"direction 0 encrypts", encrypt0, 0},
			{"direction 1 decrypts", decrypt1, 0},
			{"direction 1 encrypts", encrypt1, 128},
			{"direction 0 decrypts", decrypt0, 128},
		} {
			if !bytes.Equal(row.direction.Key, count(row.from, size)) {
				t.Errorf("%s, %d bytes: key %x", row.name, size, row.direction.Key)
			}
			if !bytes.Equal(row.direction.NonceTail[:], count(row.from+64, 8)) {
				t.Errorf("%s, %d bytes: nonce tail %x", row.name, size, row.direction.NonceTail)
			}
		}
	}
	k.Wipe()
	if k.secret != (StaticKey{}).secret {
		t.Error("the key is left after Wipe")
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	k := GenerateStaticKey()
	d, _ := k.Directions(0, 32)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		for _, value := range []any{k, d, KeyConfig{Encrypt: d, Decrypt: d}} {
			text := fmt.Sprintf(verb, value)
			if strings.Contains(text, fmt.Sprintf("%x", d.Key[:4])) || strings.Contains(text, fmt.Sprint(d.Key[0], " ", d.Key[1])) {
				t.Errorf("%s of a %T is %s", verb, value, text)
			}
		}
	}
}

func TestStaticKeyThatIsNone(t *testing.T) {
	good, err := GenerateStaticKey().MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":         "",
		"no end":        strings.Replace(string(good), "-----END", "-----", 1),
		"no begin":      strings.Replace(string(good), "-----BEGIN", "-----", 1),
		"a digit short": strings.Replace(string(good), "\n-----END", "0\n-----END", 1),
		"not hex":       strings.Replace(string(good), "V1-----\n", "V1-----\nzz", 1),
	} {
		if _, err := ParseStaticKey([]byte(text)); !errors.Is(err, ErrStaticKey) {
			t.Errorf("%s: %v, want %v", name, err, ErrStaticKey)
		}
	}
}

func FuzzParseStaticKey(f *testing.F) {
	good, err := GenerateStaticKey().MarshalText()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(staticKeyBegin + staticKeyEnd))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseStaticKey(text)
		if err != nil {
			return
		}
		written, err := k.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseStaticKey(written); err != nil || again.secret != k.secret {
			t.Errorf("written and read again: %v", err)
		}
	})
}
