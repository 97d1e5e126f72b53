package cachedb

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/skimfs/skimfs/index"
)

// The keys of the index. The first byte says what follows.
//
//	v                    layout version, u32
//	g                    generation and trusted generation, u32 each (see record.gen)
//	o <alg> <32 bytes>   an object: record
//	p <u32 big-endian>   bytes of the pack whose records are all in the index, u32
//	s <name>             a state record
const (
	keyVersion    = "v"
	keyGeneration = "g"
	prefixObject  = 'o'
	prefixPack    = 'p'
	prefixState   = 's'
)

// layoutVersion is the only layout this package reads and writes.
const layoutVersion = 1

// recordLen is the length of an object's value: class, 1 if pinned, zero (2 bytes), size, pack, off, used, gen.
const recordLen = 24

var errRecord = errors.New("malformed index record")

type key [32]byte

func keyOf(d index.Digest) key { return d.Sum() }

func objectKey(k key) []byte {
	b := make([]byte, 0, 2+len(k))
	return append(append(b, prefixObject, byte(index.SHA256)), k[:]...)
}

func parseObjectKey(b []byte) (k key, err error) {
	if len(b) != 2+len(k) || b[1] != byte(index.SHA256) {
		return k, fmt.Errorf("object key of %d bytes: %w", len(b), errRecord)
	}
	return key(b[2:]), nil
}

func packKey(id uint32) []byte { return binary.BigEndian.AppendUint32([]byte{prefixPack}, id) }

func stateKey(name string) []byte { return append([]byte{prefixState}, name...) }

// encodeRecord packs l. gen is the generation in which the content was written or last verified; 0 means never trusted.
func encodeRecord(l loc, gen uint32) []byte {
	if l.suspect {
		gen = 0
	}
	b := make([]byte, 0, recordLen)
	b = append(b, byte(l.class), 0, 0, 0)
	if l.pinned {
		b[1] = 1
	}
	for _, v := range [...]uint32{l.size, l.pack, l.off, l.used, gen} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func decodeRecord(b []byte) (l loc, gen uint32, err error) {
	if len(b) != recordLen {
		return l, 0, fmt.Errorf("object of %d bytes: %w", len(b), errRecord)
	}
	u := func(i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
	l = loc{class: Class(b[0]), size: u(4), pack: u(8), off: u(12), used: u(16), stamp: u(16), pinned: b[1]&1 != 0}
	if l.size == 0 || l.size > index.MaxObject || (l.pack == 0) != (l.size > packMax) || l.class > ClassCatalog {
		return l, 0, fmt.Errorf("object of size %d in pack %d: %w", l.size, l.pack, errRecord)
	}
	return l, u(20), nil
}
