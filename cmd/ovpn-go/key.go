package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
)

func newKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Generate, add, swap, delete and show keys",
	}
	cmd.AddCommand(newKeyGenerateCommand(), newKeyAddCommand(), newKeySwapCommand(), newKeyDeleteCommand(), newKeyShowCommand())
	return cmd
}

// reuseWarning is part of the help of all that deals with static keys.
const reuseWarning = `Never add the same key twice: packet ids start from 1 with each "key add", so the cipher's nonces would
repeat, and whoever listens could read and forge packets. Generate a new key for every start of a tunnel.`

func newKeyGenerateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "generate",
		Short: "Print a new static key",
		Long: `generate prints a new random key in the format of "openvpn --genkey secret", which both ends of a tunnel need.

` + reuseWarning,
		Example: "  (umask 077; ovpn-go key generate > tunnel.key)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key := client.GenerateStaticKey()
			defer key.Wipe()
			text, err := key.MarshalText()
			if err != nil {
				return err
			}
			defer clear(text)
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}

func newKeyAddCommand() *cobra.Command {
	var (
		slot      slotFlag
		id        uint8
		cipher    = cipherFlag("AES-256-GCM")
		direction int
		file      string
	)
	cmd := &cobra.Command{
		Use:   "add LINK PEER --file FILE --direction 0|1",
		Short: "Give a peer a key",
		Long: `add puts a key into one of a peer's two slots, in place of what is there. What is sent is sealed with the primary
slot's key; what arrives is opened with the slot's that has the packet's key id.

FILE is a static key, as "key generate" or "openvpn --genkey secret" writes it; - is standard input. One end of the tunnel adds
it with direction 0, the other with direction 1.

` + reuseWarning,
		Example:           "  ovpn-go key add ovpn0 1 --file tunnel.key --direction 0",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			if direction != 0 && direction != 1 {
				return fmt.Errorf("key add: --direction %d: must be 0 at one end and 1 at the other", direction)
			}
			link, peer, err := linkAndPeer(c, args)
			if err != nil {
				return err
			}
			secret, err := readStaticKey(cmd, file)
			if err != nil {
				return err
			}
			defer secret.Wipe()
			algorithm, size := cipher.value()
			k := client.KeyConfig{Slot: client.Slot(slot), ID: id, Cipher: algorithm}
			k.Encrypt, k.Decrypt = secret.Directions(direction, size)
			defer clear(k.Encrypt.Key)
			defer clear(k.Decrypt.Key)
			return c.NewKey(link.Index, peer, k)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "file", "", "static key file; - is standard input")
	flags.IntVar(&direction, "direction", -1, "0 at one end, 1 at the other")
	flags.Var(&cipher, "cipher", strings.Join(cipherNames, ", "))
	flags.Var(&slot, "slot", "primary or secondary")
	flags.Uint8Var(&id, "id", 0, "key id, 0 to 7; the other end's key must have the same")
	for _, required := range []string{"file", "direction"} {
		if err := cmd.MarkFlagRequired(required); err != nil {
			panic(err) // the flag's name is above
		}
	}
	return cmd
}

func readStaticKey(cmd *cobra.Command, path string) (*client.StaticKey, error) {
	in := cmd.InOrStdin()
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("read static key: %w", err)
		}
		defer file.Close()
		in = file
	}
	const largest = 64 << 10
	text := make([]byte, largest)
	defer clear(text)
	n := 0
	for n < largest {
		m, err := in.Read(text[n:])
		n += m
		if err != nil {
			break // its end, or what is missing shows below
		}
	}
	key, err := client.ParseStaticKey(text[:n])
	if err != nil {
		return nil, fmt.Errorf("read static key %s: %w", path, err)
	}
	return key, nil
}

func newKeySwapCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "swap LINK PEER",
		Short:             "Exchange a peer's two slots",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			link, peer, err := linkAndPeer(c, args)
			if err != nil {
				return err
			}
			return c.SwapKeys(link.Index, peer)
		}),
	}
}

func newKeyDeleteCommand() *cobra.Command {
	var slot slotFlag
	cmd := &cobra.Command{
		Use:               "del LINK PEER",
		Aliases:           []string{"delete"},
		Short:             "Empty one of a peer's slots",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			link, peer, err := linkAndPeer(c, args)
			if err != nil {
				return err
			}
			return c.DeleteKey(link.Index, peer, client.Slot(slot))
		}),
	}
	cmd.Flags().Var(&slot, "slot", "primary or secondary")
	return cmd
}

func newKeyShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "show LINK PEER",
		Short:             "Print which keys a peer has",
		Long:              "show prints the slots of a peer that hold a key, its id and its cipher. The key itself can't be read back.",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeLinks,
		RunE: withClient(func(cmd *cobra.Command, c *client.Conn, args []string) error {
			link, peer, err := linkAndPeer(c, args)
			if err != nil {
				return err
			}
			// An empty slot and a peer that is not there have the same error.
			if _, err := c.Peer(link.Index, peer); err != nil {
				return err
			}
			status, err := c.PeerStatus(link.Index)
			if err != nil && !errors.Is(err, client.ErrNoStatus) {
				return err
			}
			keys, err := viewKeys(c, link, peer, status[peer])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), keys)
			}
			for _, key := range keys {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: key id %d, %s\n", key.Slot, key.ID, key.Cipher)
			}
			return nil
		}),
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// viewKeys returns the keys in a peer's slots, with what the peer's status says of them.
func viewKeys(c *client.Conn, link client.Link, peer uint32, status client.PeerStatus) ([]keyView, error) {
	keys := []keyView{}
	for _, slot := range []client.Slot{client.Primary, client.Secondary} {
		key, err := c.Key(link.Index, peer, slot)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		view := keyView{Slot: slot.String(), ID: key.ID, Cipher: key.Cipher.String()}
		if age, ok := status.KeyAge(slot, key.ID); ok {
			view.Age = seconds(age)
		}
		keys = append(keys, view)
	}
	return keys, nil
}

// slotFlag is a slot on the command line.
type slotFlag client.Slot

func (f *slotFlag) Type() string   { return "SLOT" }
func (f *slotFlag) String() string { return client.Slot(*f).String() }
func (f *slotFlag) Set(text string) error {
	for _, slot := range []client.Slot{client.Primary, client.Secondary} {
		if text == slot.String() {
			*f = slotFlag(slot)
			return nil
		}
	}
	return errors.New("must be primary or secondary")
}

// cipherNames are the ciphers as OpenVPN names them, with the size of their keys.
var cipherNames = []string{"AES-256-GCM", "AES-192-GCM", "AES-128-GCM", "CHACHA20-POLY1305"}

// cipherFlag is a cipher's name on the command line.
type cipherFlag string

func (f *cipherFlag) Type() string   { return "CIPHER" }
func (f *cipherFlag) String() string { return string(*f) }
func (f *cipherFlag) Set(text string) error {
	for _, name := range cipherNames {
		if strings.EqualFold(name, text) {
			*f = cipherFlag(name)
			return nil
		}
	}
	return fmt.Errorf("must be one of %s", strings.Join(cipherNames, ", "))
}

// value returns the cipher and the size of its key in bytes.
func (f cipherFlag) value() (client.Cipher, int) {
	switch f {
	case "AES-128-GCM":
		return client.AESGCM, 16
	case "AES-192-GCM":
		return client.AESGCM, 24
	case "CHACHA20-POLY1305":
		return client.ChaCha20Poly1305, 32
	}
	return client.AESGCM, 32
}
