package publishd

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/skimfs/skimfs/publish"
)

// recipe advances a job of many images: first it submits an operation for each, then it waits for them. It holds no worker.
func (d *Daemon) recipe(ctx context.Context, j *job) {
	defer func() {
		// It is looked at again when a child ends, or in a while.
		d.mu.Lock()
		delete(d.resolving, j.ID)
		d.mu.Unlock()
	}()
	d.queue.mu.Lock()
	parents := d.queue.wanted(j.ID)
	d.queue.mu.Unlock()
	slices.Sort(parents)
	if len(parents) == 0 {
		d.logIf(d.cancelUnwanted(ctx, j.ID), "cancelling", j.ID)
		return
	}
	parent := parents[0]
	if !j.Expanded {
		if err := d.expand(ctx, j, parent); err != nil {
			if ctx.Err() == nil {
				d.settle(ctx, j.ID, explain(err), true)
			}
			return
		}
	}
	if !d.queue.childrenDone(parent) {
		return
	}
	children, _ := d.List(Filter{Parent: parent}, maxRecipe, "")
	var results []json.RawMessage
	failed := 0
	for _, c := range children {
		if c.Metadata.State != Succeeded {
			failed++
		}
		results = append(results, c.Response...)
	}
	if _, err := d.queue.changeJob(ctx, j.ID, func(j *job) bool {
		if j.State.Final() || !j.Expanded {
			return false
		}
		j.Results = results
		if j.end(Succeeded, nil); failed > 0 {
			j.end(Failed, problem(ChildrenFailed, "%d of %d images could not be converted", failed, len(children)))
		}
		d.ended(j)
		return true
	}); err != nil {
		d.logIf(err, "ending a recipe", j.ID)
	}
}

func (q *queue) childrenDone(parent string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for c := range q.children[parent] {
		if !q.done(c) {
			return false
		}
	}
	return true
}

// expand submits an operation for each image of a recipe. Done twice, it gives the same operations.
func (d *Daemon) expand(ctx context.Context, j *job, parent string) error {
	r, err := parseRecipe([]byte(j.Request.Source))
	if err != nil {
		return problem(InvalidArgument, "%v", err)
	}
	var sources []string
	for _, in := range r.Input {
		repository, pattern := wildcard(in)
		if pattern == "" {
			sources = append(sources, in)
			continue
		}
		tags, err := publish.Tags(ctx, repository, publish.Options{Transport: d.transport, RegistryTimeout: d.cfg.Timeout})
		if err != nil {
			return err
		}
		for _, tag := range tags {
			if ok, _ := path.Match(pattern, tag); ok {
				sources = append(sources, repository+":"+tag)
			}
		}
	}
	slices.Sort(sources)
	sources = slices.Compact(sources)
	if len(sources) == 0 || len(sources) > maxRecipe {
		return problem(InvalidArgument, "recipe: its patterns match %d tags, want 1 to %d", len(sources), maxRecipe)
	}
	priority := j.Priority
	for _, s := range sources {
		req := Request{Kind: Convert, Source: "docker://" + s, Bare: j.Request.Bare || r.Bare, Platform: r.Platform, Priority: &priority, RequestID: fmt.Sprintf("%s %s", parent, s)}
		if _, err := d.submit(ctx, req, Caller{Name: j.Submitter}, parent); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	_, err = d.queue.changeJob(ctx, j.ID, func(j *job) bool {
		if j.State.Final() {
			return false
		}
		j.State, j.Expanded, j.Worker, j.Started, j.Stage, j.NextRun = Running, true, recipeWorker, &now, "children", nil
		return true
	})
	j.Expanded = true
	return err
}

// recipeWorker stands for whichever daemon looks after a recipe: it needs no lease.
const recipeWorker = "any"
