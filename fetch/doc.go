// Package fetch reads a repository over HTTP: through squids and mirrors as CernVM-FS does, verified, in bounded time.
//
//	c, err := fetch.New(fetch.Config{
//		Servers: []string{"http://s1.example.org/images", "http://s2.example.org/images"},
//		Proxies: "http://a:3128|http://b:3128;http://c:3128;DIRECT",
//	})
//	plain, err := c.Object(ctx, digest, size)             // immutable content, by digest
//	note, err := c.File(ctx, "manifest", ttl, 64<<10, false) // a signed note, by name
//
// A path is a proxy (or DIRECT) and a server. All requests of a Client share the current path. A fault is judged first:
// the caller's or this node's (nothing is switched), the proxy's (next member of its group, then the next group), the
// server's (next mirror), or the content's (once more with Cache-Control: no-cache, then the next mirror). What no mirror
// gives through a proxy is asked for through the next one: pages may be the proxy's own, which is left once another has the content. Faults of a
// transfer are worth another try on the same path after a random pause. One request tries each path once, so it ends;
// its context ends it sooner. What failed is probed in the background after Config.ProxyReset and Config.ServerReset, and
// used again once it answers.
//
// A proxy's name with several addresses is several proxies of its group. Slow is not dead: within a group, times to the first
// byte decide who is used; an answer that is later than 95 of 100 has a second request made through another member, and the first
// right answer counts (at most 5 % of requests); what timed out while others were served is not left.
//
// Promises:
//   - Object returns nothing unless the whole content has the wanted digest and size.
//   - No answer is read beyond what the caller's size or limit allows.
//   - Waiting for a connection, for the first byte, or for a trickle slower than Config.LowSpeed ends by itself.
//   - Only what the configuration lists is asked: no proxy of the environment, DIRECT only if listed. A server may point elsewhere a
//     few times, never from https to http; what it is told to know its client by, nobody else is told.
//   - A file that failed is asked for again after a pause that grows with each failure, to 2 s, and is forgotten after 10 s.
//   - Errors and logs show URLs without credentials.
//   - A missing object is not fs.ErrNotExist: that a file's content can't be had never means that there is no file.
//
// Non-promises: File checks no signature (FileChecked takes the check, and then tries the other mirrors too); two calls
// for the same object are two transfers (cachedb shares them); nothing is kept.
//
// Every change of the current path is logged once, with its reason. Counters are in Stats and in Config.Metrics.
package fetch
