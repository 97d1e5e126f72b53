// Package publishd converts images in the background: submitting returns at once, and whoever waits asks, waits or listens.
//
//	d, err := publishd.Open(ctx, publishd.Config{State: dir, Repo: repo, Keys: keys, Worker: []string{skimfs, "publishd-worker"}})
//	go d.Run(ctx)
//	http.Serve(listener, d.Handler())
//
// A client sees operations; an operation waits for a job, and operations that want the same image share one. A job is a record in a
// JetStream key-value bucket and changes by compare-and-set alone. It is claimed, never popped: a daemon that dies leaves a lease that ends,
// and the job runs again. Each change of a record is an event, and its sequence number the event's id, so there is no event without
// its change and no change without its event.
//
// Conversions run in processes of their own, at lower priority, and end when the daemon does. The daemon answers from memory and never
// waits for a registry, a disk of a repository or a conversion.
//
// What is promised: an operation that was answered ends exactly once, whatever is killed. What is not: that a job runs only once; a
// publish that is repeated changes nothing.
package publishd
