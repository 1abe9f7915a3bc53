package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/client"
)

// eventView is an announcement as --json prints it, one on a line.
type eventView struct {
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	Ifindex int       `json:"ifindex,omitempty"`
	Peer    uint32    `json:"peer"`
	Reason  string    `json:"reason,omitempty"`
	Remote  string    `json:"remote,omitempty"`
	KeyID   *uint8    `json:"key_id,omitempty"`
}

func newMonitorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Print what happens to peers as it happens",
		Long: `monitor prints announcements until it is interrupted: peers that are deleted, and why; peers that move to another
address; keys that are used up. It hears of the peers whose transport sockets are in its network namespace.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := client.OpenMonitor()
			if err != nil {
				return advise(err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			defer m.Close()
			go func() {
				<-ctx.Done()
				m.Close()
			}()
			out := cmd.OutOrStdout()
			for {
				event, err := m.Next()
				switch {
				case ctx.Err() != nil:
					return nil
				case errors.Is(err, client.ErrLost):
					fmt.Fprintln(cmd.ErrOrStderr(), "ovpn-go: monitor:", err)
					continue
				case err != nil:
					return err
				}
				view := viewEvent(event)
				if asJSON {
					err = json.NewEncoder(out).Encode(view)
				} else {
					_, err = fmt.Fprintln(out, view.text())
				}
				if err != nil {
					return err
				}
			}
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func viewEvent(event client.Event) eventView {
	view := eventView{Time: time.Now(), Event: string(event.Kind), Ifindex: event.Ifindex, Peer: event.PeerID}
	switch event.Kind {
	case client.PeerDeleted:
		view.Reason = event.Reason.String()
	case client.PeerFloated:
		view.Remote = event.Remote.String()
	case client.KeyExhausted:
		view.KeyID = &event.KeyID
	}
	return view
}

func (v eventView) text() string {
	what := ""
	switch {
	case v.Reason != "":
		what = "deleted: " + v.Reason
	case v.Remote != "":
		what = "is at " + v.Remote + " now"
	case v.KeyID != nil:
		what = fmt.Sprintf("has used up key %d", *v.KeyID)
	}
	return fmt.Sprintf("%s  interface %d, peer %d %s", v.Time.Format("15:04:05.000"), v.Ifindex, v.Peer, what)
}
