package fetch

import "hash/fnv"

// slowShare is of how many objects of its share a slow proxy keeps one.
const slowShare = 8

// shard returns the member of the current group that path belongs to, among those that have not failed and are not not. Each path has an order
// of all members of its own (rendezvous hashing), so a proxy that leaves hands its share to all others and moves nothing else. A slow one keeps
// a part of its share.
func (ch *proxyChain) shard(path string, not *member) *member {
	var best *member
	var most uint64
	for _, m := range ch.all {
		if m.group != ch.cur.group || m.burned || m == not {
			continue
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(m.String()))
		_, _ = h.Write([]byte{0})
		_, _ = h.Write([]byte(path))
		n := mix(h.Sum64())
		if m.pace.slow && n%slowShare != 0 {
			n = 0
		}
		if best == nil || n > most {
			best, most = m, n
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
