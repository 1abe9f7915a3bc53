package daemon

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/netlinksrv/daemon/wire"
	"ovpn-go/netlinksrv/exec"
)

// status answers status requests until the client closes the connection.
func (d *Daemon) status(c *wire.Conn, caller *exec.Caller, r request) error {
	ns, err := r.namespace(caller)
	if err != nil {
		return err
	}
	defer ns.Close()
	for asked := r.Request; ; {
		peers, err := d.options.Server.Status(caller.MayAdmin, ns, asked.Ifindex, asked.From, wire.StatusPeers)
		if err != nil {
			return fmt.Errorf("status of interface %d: %w", asked.Ifindex, err)
		}
		reply := wire.Reply{}
		for _, p := range peers {
			view := wire.PeerStatus{ID: p.ID}
			if p.Silence >= 0 {
				seconds := int64(p.Silence / time.Second)
				view.LastSeen = &seconds
			}
			for _, key := range p.Keys {
				view.Keys = append(view.Keys, wire.KeyStatus{
					Slot: key.Slot.String(), ID: key.ID, Cipher: key.Cipher.String(), Age: int64(key.Age / time.Second)})
			}
			reply.Peers = append(reply.Peers, view)
		}
		if err := c.Send(reply); err != nil {
			return nil
		}
		next, err := receive(c)
		next.Close()
		if err != nil {
			return err
		}
		if next.Type != wire.TypeStatus {
			return fmt.Errorf("request %q: %w", next.Type, unix.EOPNOTSUPP)
		}
		asked = next.Request
	}
}
