package publishd

import (
	"context"
	"crypto/sha256"
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
	ended := false
	after, err := d.queue.changeJob(ctx, j.ID, func(j *job) bool {
		if ended = !j.State.Final() && j.Expanded; !ended {
			return false
		}
		if size(results)+len(j.Request.Source) <= maxResults {
			j.Results = results
		}
		if j.end(Succeeded, nil); failed > 0 {
			j.end(Failed, problem(ChildrenFailed, "%d of %d images could not be converted", failed, len(children)))
		}
		return true
	})
	if d.logIf(err, "ending a recipe", parent); err == nil && ended {
		d.ended(after)
	}
}

// maxResults bounds, in bytes, what the record of a recipe repeats of its images' operations: a record has to pass through the queue.
const maxResults = 256 << 10

func size(texts []json.RawMessage) (n int) {
	for _, t := range texts {
		n += len(t)
	}
	return n
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
		tags, err := publish.Tags(ctx, repository, publish.Options{Transport: d.transport.of(j.Here), RegistryTimeout: d.cfg.Timeout})
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
	for n, s := range sources {
		req := Request{Kind: Convert, Source: "docker://" + s, Bare: j.Request.Bare || r.Bare, Platform: r.Platform, Priority: &priority, RequestID: fmt.Sprintf("%s %s", parent, s), Deadline: j.Request.Deadline}
		if _, err := d.submit(ctx, req, Caller{Name: j.Submitter, Local: j.Local, Here: j.Here}, parent, childID(j, n, s)); err != nil {
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

// childID is the id of a recipe's nth image: the same whichever daemon makes its operation, and in the order of the recipe.
func childID(j *job, n int, source string) string {
	sum := sha256.Sum256([]byte(j.ID + "\x00" + source))
	return idOf(j.Created.Add(time.Duration(n+1)), sum[:8])
}

// recipeWorker stands for whichever daemon looks after a recipe: it needs no lease.
const recipeWorker = "any"
