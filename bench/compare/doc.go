// Package compare is the side-by-side comparison behind `ovpn-go bench`: ways to carry packets between two network
// namespaces take turns at the same traffic, on the same machine, in the same minutes.
//
// What is compared is never a number of one run with a number of another: in every round each contender has its turn,
// ratios are taken within the round, and what is reported is their median and how far they lie apart.
package compare
