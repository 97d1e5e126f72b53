// Package testkit holds what the tests and benchmarks of several packages share: real servers,
// images with known oddities, and eyes that look at a mount from another process. Only tests and
// benchmarks import it.
//
// Servers are Debian's own programs with a private configuration on a free loopback port. They
// end with the test, and with the test binary if that dies:
//
//	origin := testkit.StartNginx(t, repository)
//	proxy := testkit.StartSquid(t)
//	slow := testkit.NewDelayProxy(t, origin.Addr, 20*time.Millisecond, 1000)
//	…
//	if n := origin.Log().Class("objects").Count(); n != 0 { … }
//
// Images are OCI layouts with the tag "latest". [DemoImage] is Debian 12 with python3 and numpy,
// built once a machine by scripts/image-demo; [Whiteouts], [Oddities] and [Empty] are made on the
// spot, the same bytes each time, with gzip or zstd layers. [RandomStack] makes as many images as
// there are seeds.
//
// [Unpack] has umoci unpack an image, [Walk] lists a tree with all that a file system tells of
// it, [Diff] compares two such lists. Walk reads in a child process (the test binary run anew), so
// the tree may be a mount that a daemon in this very process serves.
//
// [Build] compiles cmd/skimfs once a test binary; [Home] gives a SKIMFS_HOME in which whatever is
// still mounted or running at the end of the test is taken down.
//
// [NeedRoot] and [NeedFUSE] skip what this machine can't do; with SKIMFS_TESTS=all, as CI has it,
// they fail. A program that is missing always fails the test and names the package: a skipped
// oracle proves nothing.
package testkit
