package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/skimfs/skimfs/mountd"
)

// byteBar shows on a terminal how many bytes of how many are done; elsewhere it shows nothing.
type byteBar struct {
	all  *mpb.Progress // nil: no terminal
	bar  *mpb.Bar
	note atomic.Pointer[string]
}

func newByteBar(w io.Writer, what string) *byteBar {
	b := &byteBar{}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return b
	}
	b.all = mpb.New(mpb.WithOutput(f), mpb.WithAutoRefresh())
	b.bar = b.all.AddBar(0, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(what+" "), decor.CountersKiloByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1000(0), "% .1f"), decor.Any(func(decor.Statistics) string {
			if note := b.note.Load(); note != nil {
				return " " + *note
			}
			return ""
		})))
	return b
}

func (b *byteBar) set(done, total int64) {
	if b.all != nil {
		b.bar.SetTotal(total, false)
		b.bar.SetCurrent(done)
	}
}

// stop takes the bar from the terminal.
func (b *byteBar) stop() {
	if b.all != nil {
		b.bar.Abort(true)
		b.all.Wait()
	}
}

// work shows how work on an image goes.
func (b *byteBar) work(p mountd.WorkProgress) {
	note := fmt.Sprintf("%d of %d objects", p.CachedObjects, p.Objects)
	b.note.Store(&note)
	b.set(p.CachedBytes, p.Bytes)
}

// Write counts what passes by, so that the bar can be a copy's second destination.
func (b *byteBar) Write(p []byte) (int, error) {
	if b.all != nil {
		b.bar.IncrBy(len(p))
	}
	return len(p), nil
}
