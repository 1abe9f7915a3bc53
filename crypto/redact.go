package crypto

import (
	"fmt"
	"io"
	"log/slog"
)

// The types below hold secrets. They print as a description through fmt with any verb, through slog
// with any handler, and through encoders that know encoding.TextMarshaler, such as encoding/json.
// The one way around this is an unexported field of another type: fmt does not call methods there,
// so such a type needs methods of its own.

const redacted = "(redacted)"

// String says that there is key material, not which.
func (d Direction) String() string { return redacted }

// Format prints String for every verb.
func (d Direction) Format(f fmt.State, _ rune) { io.WriteString(f, d.String()) }

// LogValue is String.
func (d Direction) LogValue() slog.Value { return slog.StringValue(d.String()) }

// MarshalText is String.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String names the key's id and cipher.
func (c KeyConfig) String() string { return describe(c.ID, c.Cipher) }

// Format prints String for every verb.
func (c KeyConfig) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// LogValue is String.
func (c KeyConfig) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalText is String.
func (c KeyConfig) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// String names the key's id and cipher.
func (k *Key) String() string { return describe(k.id, k.cipher) }

// Format prints String for every verb.
func (k *Key) Format(f fmt.State, _ rune) { io.WriteString(f, k.String()) }

// LogValue is String.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText is String.
func (k *Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func describe(id uint8, c Cipher) string {
	return fmt.Sprintf("key %d %v %s", id, c, redacted)
}
