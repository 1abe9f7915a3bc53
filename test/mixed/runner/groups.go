package main

import "slices"

// groups returns all that is claimed. What waits most of its time comes first.
func groups() []group {
	return slices.Concat(openvpnGroups(), keepaliveGroups(), rekeyGroups(), carryGroups(), floatGroups(), closeGroups())
}
