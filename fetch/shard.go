package fetch

import (
	"hash/fnv"
)

// shard returns the member of the current group that path belongs to, among those that have not failed. Each path has an order of all
// members of its own (rendezvous hashing), so a proxy that leaves hands its share to all others and moves nothing else.
func (ch *proxyChain) shard(path string) int {
	best, most := ch.cur, uint64(0)
	for i, p := range ch.all {
		if ch.group[i] != ch.group[ch.cur] || ch.burned[i] {
			continue
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(p.String()))
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(path))
		if n := mix(h.Sum64()); n >= most {
			best, most = i, n
		}
	}
	return best
}

// mix spreads the bits of h: the last bytes that FNV saw touch few of the high ones.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
