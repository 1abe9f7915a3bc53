package netlinksrv

import (
	"errors"

	"golang.org/x/sys/unix"

	"ovpn-go/tun/netns"
)

// familyIDs are the numbers under which clients know a family. They hold as long as the server lives.
type familyIDs struct {
	family uint16 // nlmsg_type
	group  uint32 // multicast group "peers"
}

// The kernel gives out family ids from 0x13 upwards and group ids as low as it can, so we begin at the far ends.
const (
	maxFamilyID = 1023 // GENL_MAX_ID
	maxGroupID  = 1023 // as high as a membership bitmap of 128 bytes goes
)

var errNoFamilyID = errors.New("all generic netlink family ids are taken")

// chooseFamilyIDs picks ids for all families that the real kernel, asked in any namespace, does not use.
func chooseFamilyIDs(ns *netns.NS) (chosen [familyCount]familyIDs, err error) {
	c, err := dialNetlink(ns, unix.NETLINK_GENERIC)
	if err != nil {
		return chosen, err
	}
	defer c.close()
	answers, err := c.ask(unix.GENL_ID_CTRL, unix.NLM_F_DUMP, []byte{unix.CTRL_CMD_GETFAMILY, ctrlVersion, 0, 0})
	if err != nil {
		return chosen, err
	}
	return unusedIDs(answers)
}

// unusedIDs picks the highest ids that no family in a dump of families has.
func unusedIDs(dump [][]byte) (chosen [familyCount]familyIDs, err error) {
	ids := map[uint16]bool{}
	groups := map[uint32]bool{}
	for _, msg := range dump {
		each(msg, firstAttribute, func(a attribute) {
			switch a.number() {
			case unix.CTRL_ATTR_FAMILY_ID:
				if len(a.payload) == 2 {
					ids[nativeEndian.Uint16(a.payload)] = true
				}
			case unix.CTRL_ATTR_MCAST_GROUPS:
				eachInside(a, func(group attribute) {
					eachInside(group, func(a attribute) {
						if a.number() == unix.CTRL_ATTR_MCAST_GRP_ID && len(a.payload) == 4 {
							groups[a.u32()] = true
						}
					})
				})
			}
		})
	}
	next := familyIDs{family: maxFamilyID, group: maxGroupID}
	for i := range chosen {
		for ids[next.family] {
			next.family--
		}
		for groups[next.group] {
			next.group--
		}
		if next.family <= unix.GENL_ID_CTRL || next.group == 0 {
			return chosen, errNoFamilyID
		}
		chosen[i] = next
		next.family--
		next.group--
	}
	return chosen, nil
}

// each calls fn for the attributes of a message, which begin at the given offset.
func each(msg []byte, offset int, fn func(attribute)) {
	if len(msg) < offset {
		return
	}
	r := attributeReader{rest: msg[offset:], offset: offset}
	for a, ok := r.next(); ok; a, ok = r.next() {
		fn(a)
	}
}

// eachInside calls fn for the attributes in a nest.
func eachInside(nest attribute, fn func(attribute)) {
	r := attributeReader{rest: nest.payload, offset: nest.offset + attributeHeader}
	for a, ok := r.next(); ok; a, ok = r.next() {
		fn(a)
	}
}
