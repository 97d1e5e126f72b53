package cachedb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/skimfs/skimfs/index"
)

const (
	blockSize  = 16 << 10 // unit of the checksums
	packMax    = 32 << 10 // largest object that goes to a pack
	headerLen  = 64       // of a pack record and of a chunk file's footer
	packAlign  = 8        // pack records begin at multiples of it
	packMagic  = "skp1"
	chunkMagic = "skc1"
)

// errDamaged marks bytes on disk that are not what was written.
var errDamaged = errors.New("damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// header is the fixed part of a pack record and of a chunk file's footer; see doc.go for the bytes.
type header struct {
	key   key
	class Class
	size  uint32
	crc   [2]uint32 // pack: of blocks 0 and 1; chunk file: of the list, 0
	clock uint32
}

func (h *header) put(b []byte, magic string) {
	copy(b, magic)
	b[4], b[5], b[6], b[7] = byte(index.SHA256), byte(h.class), 0, 0
	le := binary.LittleEndian
	le.PutUint32(b[8:], h.size)
	le.PutUint32(b[12:], h.crc[0])
	le.PutUint32(b[16:], h.crc[1])
	copy(b[20:], h.key[:])
	le.PutUint32(b[52:], h.clock)
	le.PutUint32(b[56:], 0)
	le.PutUint32(b[60:], crcOf(b[:60]))
}

func parseHeader(b []byte, magic string) (h header, err error) {
	le := binary.LittleEndian
	switch {
	case len(b) < headerLen || string(b[:4]) != magic:
		return h, fmt.Errorf("no %s header: %w", magic, errDamaged)
	case le.Uint32(b[60:]) != crcOf(b[:60]):
		return h, fmt.Errorf("%s header: checksum: %w", magic, errDamaged)
	}
	h = header{key: key(b[20:52]), class: Class(b[5]), size: le.Uint32(b[8:]),
		crc: [2]uint32{le.Uint32(b[12:]), le.Uint32(b[16:])}, clock: le.Uint32(b[52:])}
	if b[4] != byte(index.SHA256) || h.size == 0 || h.size > index.MaxObject || h.class > ClassCatalog || (h.size > packMax) != (magic == chunkMagic) {
		return h, fmt.Errorf("%s header: values out of range: %w", magic, errDamaged)
	}
	return h, nil
}

func blocks(size int64) int64 { return (size + blockSize - 1) / blockSize }

// span widens [off, end) to block edges within size.
func span(off, end, size int64) (int64, int64) {
	return off &^ (blockSize - 1), min(size, (end+blockSize-1)&^(blockSize-1))
}

// checkBlocks compares b, whole blocks beginning with number first, with their checksums.
func checkBlocks(b []byte, first int64, crc func(i int64) uint32) error {
	for i := first; len(b) > 0; i++ {
		n := min(len(b), blockSize)
		if crcOf(b[:n]) != crc(i) {
			return fmt.Errorf("block %d: checksum: %w", i, errDamaged)
		}
		b = b[n:]
	}
	return nil
}

// packRecordLen is the length of the pack record of an object of size bytes.
func packRecordLen(size int64) int64 { return (headerLen + size + packAlign - 1) &^ (packAlign - 1) }

func appendPackRecord(b []byte, k key, class Class, clock uint32, plain []byte) []byte {
	h := header{key: k, class: class, size: uint32(len(plain)), clock: clock}
	h.crc[0] = crcOf(plain[:min(len(plain), blockSize)])
	if len(plain) > blockSize {
		h.crc[1] = crcOf(plain[blockSize:])
	}
	start := len(b)
	b = append(b, make([]byte, headerLen)...)
	h.put(b[start:], packMagic)
	b = append(b, plain...)
	return append(b, make([]byte, packRecordLen(int64(len(plain)))-headerLen-int64(len(plain)))...)
}

// trailerLen is the length of a chunk file's trailer.
func trailerLen(size int64) int64 { return 4*blocks(size) + headerLen }

func chunkTrailer(k key, class Class, clock uint32, plain []byte) []byte {
	b := make([]byte, 0, trailerLen(int64(len(plain))))
	for rest := plain; len(rest) > 0; {
		n := min(len(rest), blockSize)
		b = binary.LittleEndian.AppendUint32(b, crcOf(rest[:n]))
		rest = rest[n:]
	}
	h := header{key: k, class: class, size: uint32(len(plain)), crc: [2]uint32{crcOf(b)}, clock: clock}
	b = append(b, make([]byte, headerLen)...)
	h.put(b[len(b)-headerLen:], chunkMagic)
	return b
}

// parseTrailer reads the trailer of a chunk file that holds size bytes of content.
func parseTrailer(b []byte, size int64) (h header, crcs []uint32, err error) {
	if int64(len(b)) != trailerLen(size) {
		return h, nil, fmt.Errorf("trailer of %d bytes: %w", len(b), errDamaged)
	}
	list := b[:len(b)-headerLen]
	if h, err = parseHeader(b[len(list):], chunkMagic); err != nil {
		return h, nil, err
	}
	if int64(h.size) != size || h.crc[0] != crcOf(list) {
		return h, nil, fmt.Errorf("checksum list: %w", errDamaged)
	}
	crcs = make([]uint32, len(list)/4)
	for i := range crcs {
		crcs[i] = binary.LittleEndian.Uint32(list[4*i:])
	}
	return h, crcs, nil
}
