package fetch

import (
	"slices"
	"time"
)

// A slow proxy is not a dead one (row W11): it is used less, and found to be quick again when it is. What counts is the time to the first byte:
// it does not depend on an object's size.
const (
	paceSamples = 16                    // of a member, the latest
	paceKnown   = 4                     // of them are enough to judge
	slowMargin  = 10 * time.Millisecond // more than twice the best member's median and this is slow

	tailSamples = 128                   // of a group, the latest
	tailKnown   = 20                    // of them are enough for a percentile
	leastWait   = 50 * time.Millisecond // before a second request, however quick the group is

	exploreEvery  = 32 // requests of which one goes to another member of the group
	exploreSooner = 8  // the same while that one isn't known
	secondCost    = 20 // requests that earn a second one: at most 5 % more
	mostCredit    = 8 * secondCost
)

// samples are the latest durations.
type samples struct {
	ring []time.Duration
	next int
}

func (s *samples) add(d time.Duration, most int) {
	if len(s.ring) < most {
		s.ring = append(s.ring, d)
		return
	}
	s.ring[s.next] = d
	s.next = (s.next + 1) % most
}

// percentile returns the duration that p percent don't exceed. There is at least one sample.
func (s *samples) percentile(p int) time.Duration {
	sorted := slices.Sorted(slices.Values(s.ring))
	return sorted[(len(sorted)-1)*p/100]
}

// pace is how quick a member is.
type pace struct {
	samples
	slow  bool
	asked uint64 // the turn of the last request
}

func (p *pace) known() bool { return len(p.ring) >= paceKnown }

// tail is how quick a group is.
type tail struct {
	samples
	added int
	wait  time.Duration // before a second request; 0: not known
}

func (t *tail) add(d time.Duration) {
	t.samples.add(d, tailSamples)
	if t.added++; len(t.ring) >= tailKnown && t.added%8 == 0 {
		t.wait = max(t.percentile(95), leastWait)
	}
}

// timed notes that a request through m had its first byte after d, or none for so long.
func (ch *proxyChain) timed(m *member, d time.Duration) {
	if !ch.shared(m) {
		return
	}
	ch.tails[m.group].add(d)
	m.pace.add(d, paceSamples)
	ch.grade(m.group)
}

// shared reports whether m's group has others.
func (ch *proxyChain) shared(m *member) bool {
	return slices.ContainsFunc(ch.all, func(o *member) bool { return o != m && o.group == m.group })
}

// grade finds out which members of group g are slow. If the current one is, a quick one takes its place.
func (ch *proxyChain) grade(g int) {
	var best time.Duration
	for _, m := range ch.all {
		if m.group == g && good(m) && m.pace.known() {
			if d := m.pace.percentile(50); best == 0 || d < best {
				best = d
			}
		}
	}
	for _, m := range ch.all {
		if m.group != g || !m.pace.known() {
			continue
		}
		limit := 2*best + slowMargin
		if m.pace.slow { // what was slow has to be clearly better
			limit -= limit / 4
		}
		m.pace.slow = m.pace.percentile(50) > limit
	}
	if ch.cur.group == g && ch.cur.pace.slow {
		ch.cur = ch.pick(g, good)
	}
}

// turn returns the member for the next request for an object: the current one, and now and then another one of its group, so that all of them are
// known. Not while a second request could not help it out.
func (ch *proxyChain) turn() *member {
	ch.turns++
	ch.credit = min(ch.credit+1, mostCredit)
	m := ch.cur
	if ch.credit >= secondCost {
		for _, o := range ch.all {
			if o.group == m.group && o != ch.cur && good(o) && (m == ch.cur || o.pace.asked < m.pace.asked) {
				m = o
			}
		}
	}
	every := uint64(exploreEvery)
	if !m.pace.known() {
		every = exploreSooner
	}
	if ch.turns%every != 0 {
		m = ch.cur
	}
	m.pace.asked = ch.turns
	return m
}

// spend reports whether a second request may be made, and pays for it.
func (ch *proxyChain) spend() bool {
	if ch.credit < secondCost {
		return false
	}
	ch.credit -= secondCost
	return true
}
