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
	if err := d.checkMember(ctx, src, req.Options); err != nil {
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
	case m.mayChange(ctx) != nil:
		return m.mayChange(ctx)
	case m.record.Source != src.String():
		return problem(Busy, "target %q is busy: %s is mounted there", req.Target, m.record.Source)
	}
	old := m.live.Load()
	given, err := old.given.merged(req.Options)
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		given.AllowOther = old.given.AllowOther // always on, and brought back by mount(8)
	}
	next, err := d.effective(src, given)
	if err != nil {
		return err
	}
	if err := next.check(); err != nil {
		return err
	}
	next, fixed := old.now.take(next)
	if len(fixed) > 0 {
		return problem(Busy, "remounting %q: %s can't be changed while it is mounted", req.Target, strings.Join(fixed, ", "))
	}
	if old.now.same(next) && old.given.same(given) {
		return nil
	}
	return d.apply(m, live{next, given})
}

// live are a mount's options as they hold now, and what was asked for of them; the configuration says the rest.
type live struct{ now, given Options }

// apply changes the options of a mount. The caller holds the target's lock.
func (d *Daemon) apply(m *mount, next live) error {
	src, err := ParseSource(m.record.Source)
	if err != nil {
		return err
	}
	g, err := d.origins.take(src, next.now, d.db, d.cfg.Version, d.log)
	if err != nil {
		return err
	}
	old := m.options()
	was := m.chunks.via.Swap(&g)
	m.live.Store(&next)
	m.core.SetTTL(namesValid(next.now.ttl(m.shown.Load().ttl)))
	select {
	case m.changed <- struct{}{}:
	default: // it is told already
	}
	// What is being fetched the old way ends within its deadline.
	d.wg.Go(func() {
		select {
		case <-time.After(old.deadline() + trustTime):
		case <-d.ctx.Done():
		}
		d.origins.release(*was)
	})
	d.log.Info("options of a mount changed", "target", m.record.Target, "options", next.now.text())
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
var liveOptions = map[string]bool{"proxy": true, "fallback_proxy": true, "probe": true, "shard": true, "auth": true, "ca": true, "agent": true, "cache_lower": true, "servers": true, "timeout": true, "direct": true, "max_ttl": true}

// take returns o with what can be changed as next has it, and names the options that differ and can't.
func (o Options) take(next Options) (_ Options, fixed []string) {
	a, b := reflect.ValueOf(&o).Elem(), reflect.ValueOf(next)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		switch {
		case reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()):
		case liveOptions[name]:
			a.Field(i).Set(b.Field(i))
		default:
			fixed = append(fixed, name)
		}
	}
	return o, fixed
}

// text is the options as JSON, for the log.
func (o Options) text() string {
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(b)
}
