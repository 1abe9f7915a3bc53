package crypto_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"ovpn-go/crypto"
)

func TestKeyMaterialIsNeverPrinted(t *testing.T) {
	config := crypto.KeyConfig{
		ID:     4,
		Cipher: crypto.AESGCM,
		Encrypt: crypto.Direction{
			Key:       []byte("ENCRYPTENCRYPTENCRYPTENCRYPTENCR"),
			NonceTail: [8]byte([]byte("SEALTAIL")),
		},
		Decrypt: crypto.Direction{
			Key:       []byte("decryptdecryptdecryptdecryptdecr"),
			NonceTail: [8]byte([]byte("OPENTAIL")),
		},
	}
	key := newKey(t, config)
	values := map[string]any{
		"Direction": config.Encrypt, "*Direction": &config.Encrypt,
		"KeyConfig": config, "*KeyConfig": &config,
		"*Key": key, "Key": fmt.Stringer(key),
		"exported field": struct{ Config crypto.KeyConfig }{config},
		"slice":          []crypto.Direction{config.Encrypt, config.Decrypt},
		"map":            map[string]*crypto.KeyConfig{"k": &config},
	}

	var secrets []string
	for _, secret := range [][]byte{config.Encrypt.Key[:7], config.Decrypt.Key[:7], config.Encrypt.NonceTail[:4], config.Decrypt.NonceTail[:4]} {
		decimal := strings.Trim(fmt.Sprint([]byte(secret)), "[]")
		secrets = append(secrets, string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
			decimal, strings.ReplaceAll(decimal, " ", ","), base64.StdEncoding.EncodeToString(secret[:3]),
			fmt.Sprintf("%#x, %#x", secret[0], secret[1]))
	}
	mustHide := func(what, out string) {
		t.Helper()
		for _, secret := range secrets {
			if strings.Contains(out, secret) {
				t.Errorf("%s printed %q in %q", what, secret, out)
			}
		}
		if out == "" {
			t.Errorf("%s printed nothing", what)
		}
	}
	for name, value := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%08x", "% x", "%#x"} {
			mustHide(name+" "+verb, fmt.Sprintf(verb, value))
		}
		mustHide(name+" Sprint", fmt.Sprint(value))
		mustHide(name+" Errorf", fmt.Errorf("install %v: %w", value, crypto.ErrKeyLength).Error())

		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "value", value)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "value", value)
		mustHide(name+" slog", out.String())

		encoded, err := json.Marshal(value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		mustHide(name+" json", string(encoded))
	}
	if got, want := config.String(), "key 4 aes-gcm (redacted)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
