package mountd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"time"
)

// remount gives a mount other options, as far as they can be changed while it is in use, and has it look for a new revision. What the request
// doesn't mention stays.
func (d *Daemon) remount(ctx context.Context, req MountRequest) (*MountReply, error) {
	if err := d.reconfigure(ctx, req); err != nil {
		return nil, err
	}
	s, err := d.refresh(ctx, req.Target)
	if err != nil {
		return nil, err
	}
	return &MountReply{MountStatus: *s, Already: true}, nil
}

// reconfigure applies the options that req mentions.
func (d *Daemon) reconfigure(ctx context.Context, req MountRequest) error {
	src, err := ParseSource(req.Source)
	if err != nil {
		return err
	}
	unlock, err := d.targets.lock(ctx, req.Target)
	if err != nil {
		return err
	}
	defer unlock()
	d.mu.Lock()
	m := d.mounts[req.Target]
	d.mu.Unlock()
	switch {
	case m == nil || m.fuse == nil:
		return problem(NotMounted, "nothing of this daemon is mounted at %q", req.Target)
	case m.record.Source != src.String():
		return problem(Busy, "target %q is busy: %s is mounted there", req.Target, m.record.Source)
	}
	old := m.options()
	next, err := old.merged(req.Options)
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		next.AllowOther = old.AllowOther // always on, and brought back by mount(8)
	}
	if err := next.check(); err != nil {
		return err
	}
	if fixed := old.fixedIn(next); len(fixed) > 0 {
		return problem(Busy, "remounting %q: %s can't be changed while it is mounted", req.Target, strings.Join(fixed, ", "))
	}
	if old.same(next) {
		return nil
	}
	g, err := d.origins.take(src, next, d.db, d.cfg.Version, d.log)
	if err != nil {
		return err
	}
	was := m.chunks.via.Swap(&g)
	m.live.Store(&next)
	// What is being fetched the old way ends within its deadline.
	d.wg.Go(func() {
		select {
		case <-time.After(old.deadline() + trustTime):
		case <-d.ctx.Done():
		}
		d.origins.release(*was)
	})
	d.log.Info("remounted", "target", req.Target, "options", next.text())
	return d.save(m)
}

// merged returns o with what other mentions.
func (o Options) merged(other Options) (Options, error) {
	b, err := json.Marshal(other)
	if err == nil {
		keep := o
		if len(other.Servers) > 0 {
			keep.Servers = nil // not written over in place
		}
		if err = json.Unmarshal(b, &keep); err == nil {
			return keep, nil
		}
	}
	return o, &Error{Internal, err}
}

// liveOptions are those, by their names in JSON, that a remount can change.
var liveOptions = map[string]bool{"proxy": true, "servers": true, "timeout": true, "direct": true, "max_ttl": true}

// fixedIn names the options that differ in next and can't be changed.
func (o Options) fixedIn(next Options) (names []string) {
	a, b := reflect.ValueOf(o), reflect.ValueOf(next)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		if !liveOptions[name] && !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			names = append(names, name)
		}
	}
	return names
}

// text is the options as JSON, for the log.
func (o Options) text() string {
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}
