package index

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

const (
	// MaxObject is the largest plain size of an object in bytes. Longer content is cut into chunks.
	MaxObject = 8 << 20
	// maxWindow bounds the decoder's memory for each object; docs/format.md fixes it.
	maxWindow = 8 << 20
)

// ObjectEncoder turns plain content into objects: one zstd frame with its content size, no dictionary. It is safe for
// concurrent use.
type ObjectEncoder struct{ enc *zstd.Encoder }

// NewObjectEncoder returns an encoder at zstd's default level.
func NewObjectEncoder() (*ObjectEncoder, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return nil, fmt.Errorf("zstd encoder: %w", err)
	}
	return &ObjectEncoder{enc}, nil
}

// Encode appends the object that holds plain to dst.
func (e *ObjectEncoder) Encode(dst, plain []byte) []byte { return e.enc.EncodeAll(plain, dst) }

// ObjectDecoder turns objects back into verified plain content. It is safe for concurrent use.
type ObjectDecoder struct{ dec *zstd.Decoder }

// NewObjectDecoder returns a decoder that refuses windows above 8 MiB.
func NewObjectDecoder() (*ObjectDecoder, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(MaxObject),
		zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("zstd decoder: %w", err)
	}
	return &ObjectDecoder{dec}, nil
}

// Decode checks that object is exactly one frame as docs/format.md wants it, that it holds size bytes, and that their
// digest is d. It never allocates more than size bytes for the content, whatever the object claims.
func (o *ObjectDecoder) Decode(object []byte, d Digest, size int64) ([]byte, error) {
	if err := CheckFrame(object, size); err != nil {
		return nil, fmt.Errorf("object %v: %w", d, err)
	}
	plain, err := o.dec.DecodeAll(object, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("object %v: decompressing: %w: %w", d, err, ErrFormat)
	}
	if int64(len(plain)) != size {
		return nil, fmt.Errorf("object %v: holds %d bytes, want %d: %w", d, len(plain), size, ErrFormat)
	}
	if got := DigestOf(plain); got != d {
		return nil, &DigestError{Want: d, Got: got}
	}
	return plain, nil
}

// MaxObjectLen is the most bytes that an object of the given plain size may have on the wire: zstd's own bound for
// incompressible input (size + size/255 + 64) with room for a checksum. A reader stops there.
func MaxObjectLen(size int64) int64 { return size + size/255 + 512 }

// CheckFrame checks the shape of an object without decompressing it: a zstd frame (RFC 8878) that states size as its
// content size, wants at most 8 MiB of window and no dictionary, whose blocks end exactly at the object's end.
func CheckFrame(object []byte, size int64) error {
	if size <= 0 || size > MaxObject {
		return fmt.Errorf("plain size %d is outside 1..%d: %w", size, MaxObject, ErrFormat)
	}
	var h zstd.Header
	if err := h.Decode(object); err != nil {
		return fmt.Errorf("zstd frame header: %w: %w", err, ErrFormat)
	}
	switch {
	case h.Skippable:
		return fmt.Errorf("zstd frame is skippable: %w", ErrFormat)
	case h.DictionaryID != 0:
		return fmt.Errorf("zstd frame wants dictionary %d: %w", h.DictionaryID, ErrFormat)
	case !h.HasFCS || h.FrameContentSize != uint64(size):
		return fmt.Errorf("zstd frame states %d bytes, want %d: %w", h.FrameContentSize, size, ErrFormat)
	case h.WindowSize > maxWindow && !h.SingleSegment:
		return fmt.Errorf("zstd window of %d bytes is above %d: %w", h.WindowSize, maxWindow, ErrFormat)
	}
	rest := object[h.HeaderSize:]
	for last := false; !last; {
		if len(rest) < 3 {
			return fmt.Errorf("zstd frame is truncated: %w", ErrFormat)
		}
		block := uint32(rest[0]) | uint32(rest[1])<<8 | uint32(rest[2])<<16
		last = block&1 != 0
		n := int(block >> 3)
		switch kind := block >> 1 & 3; kind {
		case 1:
			n = 1 // RLE: one byte, repeated
		case 3:
			return fmt.Errorf("zstd block of reserved type: %w", ErrFormat)
		}
		if n > len(rest)-3 {
			return fmt.Errorf("zstd frame is truncated: %w", ErrFormat)
		}
		rest = rest[3+n:]
	}
	if h.HasCheckSum {
		if len(rest) < 4 {
			return fmt.Errorf("zstd frame is truncated: %w", ErrFormat)
		}
		rest = rest[4:]
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes after the zstd frame: %w", len(rest), ErrFormat)
	}
	return nil
}
