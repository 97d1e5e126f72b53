package mountd

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"

	"github.com/skimfs/skimfs/fusefs"
)

// IDMap changes numbers of users, or of groups.
type IDMap struct {
	IDs     map[uint32]uint32 `json:"ids,omitempty"`
	Default *uint32           `json:"default,omitempty"` // of those not listed; nil leaves them
}

// maxIDMap bounds the lines of a map.
const maxIDMap = 10_000

// ParseIDMap reads lines FROM TO, of which one may have * for FROM. Empty lines and what follows # don't count.
func ParseIDMap(text string) (*IDMap, error) {
	m := &IDMap{IDs: map[uint32]uint32{}}
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) != 2 || n > maxIDMap {
			return nil, problem(Usage, "line %d: want FROM TO", n)
		}
		to, err := parseMapID(f[1])
		if err != nil {
			return nil, problem(Usage, "line %d: %w", n, err)
		}
		if f[0] == "*" {
			if m.Default != nil {
				return nil, problem(Usage, "line %d: a second *", n)
			}
			m.Default = &to
			continue
		}
		from, err := parseMapID(f[0])
		if err != nil {
			return nil, problem(Usage, "line %d: %w", n, err)
		}
		if _, ok := m.IDs[from]; ok {
			return nil, problem(Usage, "line %d: %d is there twice", n, from)
		}
		m.IDs[from] = to
	}
	if err := lines.Err(); err != nil {
		return nil, problem(Usage, "map of numbers: %w", err)
	}
	return m, nil
}

func parseMapID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("%q is no number of a user or group", s)
	}
	return uint32(n), nil
}

// mapper returns m as fusefs wants it.
func (m *IDMap) mapper() fusefs.IDMap {
	if m == nil {
		return nil
	}
	return func(id uint32) uint32 {
		if to, ok := m.IDs[id]; ok {
			return to
		}
		if m.Default != nil {
			return *m.Default
		}
		return id
	}
}
