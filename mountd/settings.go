package mountd

import (
	"net/http"
	"slices"
	"strings"
)

// Settings are what a daemon's configuration says. They are read again on a reload.
type Settings struct {
	Quota      int64                     // bytes on disk; 0: as Config.Quota
	Keys       []string                  // directories with NAME.pub, before the home's
	Repository func(name string) Options // for mounts that say nothing else; name is "" where only a URL is known
	AtStart    map[string]string         // values of keys that only a start reads
}

// settings returns what holds now.
func (d *Daemon) settings() *Settings {
	if s := d.config.Load(); s != nil {
		return s
	}
	return &Settings{}
}

// effective adds to the options of a request what the configuration says of the repository.
func (d *Daemon) effective(src Source, given Options) (Options, error) {
	if given.Suid {
		return given, problem(Permission, "suid is for the configuration file to allow, in the section of one repository")
	}
	s := d.settings()
	if s.Repository == nil {
		return given, nil
	}
	return s.Repository(src.Name).merged(given)
}

// keyDirs are the directories where keys are looked for.
func (d *Daemon) keyDirs() []string {
	return append(slices.Clone(d.settings().Keys), d.cfg.Home.Keys...)
}

// ReloadReply tells what a reload did.
type ReloadReply struct {
	Changed []string        `json:"changed"` // targets of mounts that have other options now
	Fixed   []ReloadProblem `json:"fixed"`   // what can't change while it is in use
}

// ReloadProblem is a mount that keeps old options.
type ReloadProblem struct {
	Target  string   `json:"target"` // "" for the daemon itself
	Options []string `json:"options"`
	Reason  string   `json:"reason"`
}

// Reload reads the configuration again and applies it to the daemon and to all mounts, as far as that can be done while they are in use. On an
// error nothing changes.
func (d *Daemon) reload() (*ReloadReply, error) {
	reply := &ReloadReply{Changed: []string{}, Fixed: []ReloadProblem{}}
	if d.cfg.Load == nil {
		return reply, nil
	}
	d.reloading.Lock()
	defer d.reloading.Unlock()
	next, err := d.cfg.Load()
	if err != nil {
		return nil, &Error{Usage, err}
	}
	old := d.config.Swap(next)
	if _, ram := ramLimit(d.place.cache); !ram && old != nil && next.Quota != old.Quota && next.Quota > 0 && d.cfg.Quota == 0 {
		if err := d.db.SetLimit(next.Quota); err != nil {
			d.log.Error("recording the cache limit", "err", err)
		}
	}
	var late []string
	for key, value := range next.AtStart {
		if value != d.started.AtStart[key] {
			late = append(late, key)
		}
	}
	if len(late) > 0 {
		slices.Sort(late)
		reply.Fixed = append(reply.Fixed, ReloadProblem{"", late, "counts from the daemon's next start on"})
	}
	d.mu.Lock()
	var all []*mount
	for _, m := range d.mounts {
		if m.fuse != nil {
			all = append(all, m)
		}
	}
	d.mu.Unlock()
	slices.SortFunc(all, func(a, b *mount) int { return strings.Compare(a.record.Target, b.record.Target) })
	for _, m := range all {
		changed, fixed, err := d.reloadMount(m)
		if changed {
			reply.Changed = append(reply.Changed, m.record.Target)
		}
		if err != nil {
			reply.Fixed = append(reply.Fixed, ReloadProblem{m.record.Target, []string{}, err.Error()})
		} else if len(fixed) > 0 {
			reply.Fixed = append(reply.Fixed, ReloadProblem{m.record.Target, fixed, "can't be changed while it is mounted"})
		}
	}
	for _, p := range reply.Fixed {
		d.log.Warn("not changed by the reload", "target", p.Target, "options", p.Options, "reason", p.Reason)
	}
	d.log.Info("configuration reloaded", "changed", len(reply.Changed), "fixed", len(reply.Fixed))
	return reply, nil
}

// reloadMount gives a mount what the configuration says now.
func (d *Daemon) reloadMount(m *mount) (changed bool, fixed []string, err error) {
	src, err := ParseSource(m.record.Source)
	if err != nil {
		return false, nil, err
	}
	unlock, err := d.targets.lock(d.ctx, m.record.Target)
	if err != nil {
		return false, nil, err
	}
	defer unlock()
	if m.done() {
		return false, nil, nil
	}
	was := m.live.Load()
	next, err := d.effective(src, was.given)
	if err != nil {
		return false, nil, err
	}
	if err := next.check(); err != nil {
		return false, nil, err
	}
	next, fixed = was.now.take(next)
	if was.now.same(next) {
		return false, fixed, nil
	}
	return true, fixed, d.apply(m, live{next, was.given})
}

func (d *Daemon) postReload(http.ResponseWriter, *http.Request) (any, error) { return d.reload() }
