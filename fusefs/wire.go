package fusefs

import (
	"encoding/binary"
	"time"
	"unsafe"
)

// Replies in the kernel's own form (linux/fuse.h, protocol 7.9 and later), for adapters to send as they are.
const (
	attrSize     = 88
	attrOutSize  = 16 + attrSize
	entryOutSize = 40 + attrSize
	statfsSize   = 80
	blockSize    = 4096
	maxName      = 255
)

var wire = binary.NativeEndian

func putAttr(b []byte, a *Attr) {
	_ = b[attrSize-1]
	wire.PutUint64(b, uint64(a.Node))
	wire.PutUint64(b[8:], uint64(a.Size))
	wire.PutUint64(b[16:], uint64((a.Size+511)/512))
	for i := range 3 { // access, modification, change
		wire.PutUint64(b[24+8*i:], uint64(a.Sec))
		wire.PutUint32(b[48+4*i:], a.Nsec)
	}
	wire.PutUint32(b[60:], a.Mode)
	wire.PutUint32(b[64:], a.Nlink)
	wire.PutUint32(b[68:], a.UID)
	wire.PutUint32(b[72:], a.GID)
	wire.PutUint32(b[76:], a.Minor&0xff|a.Major<<8|(a.Minor&^0xff)<<12)
	wire.PutUint32(b[80:], blockSize)
	wire.PutUint32(b[84:], 0)
}

func putValid(sec, nsec []byte, d time.Duration) {
	wire.PutUint64(sec, uint64(d/time.Second))
	wire.PutUint32(nsec, uint32(d%time.Second))
}

// attrOut writes struct fuse_attr_out to b and returns it.
func attrOut(b []byte, a *Attr) []byte {
	b = b[:attrOutSize]
	putValid(b, b[8:], a.Valid)
	wire.PutUint32(b[12:], 0)
	putAttr(b[16:], a)
	return b
}

// entryOut writes struct fuse_entry_out to b and returns it.
func entryOut(b []byte, e *Entry) []byte {
	b = b[:entryOutSize]
	clear(b)
	putValid(b[16:], b[32:], e.EntryValid)
	if e.Node == 0 {
		return b
	}
	wire.PutUint64(b, uint64(e.Node))
	putValid(b[24:], b[36:], e.Valid)
	putAttr(b[40:], &e.Attr)
	return b
}

// statfsOut writes struct fuse_statfs_out to b and returns it.
func statfsOut(b []byte, t Totals) []byte {
	b = b[:statfsSize]
	clear(b)
	wire.PutUint64(b, uint64(max(1, (t.Bytes+blockSize-1)/blockSize)))
	wire.PutUint64(b[24:], uint64(t.Entries))
	wire.PutUint32(b[40:], blockSize)
	wire.PutUint32(b[44:], maxName)
	wire.PutUint32(b[48:], blockSize)
	return b
}

// nameBytes is the name without a copy. It must not be changed.
func nameBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
