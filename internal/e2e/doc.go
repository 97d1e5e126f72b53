// Package e2e has no code of its own: its tests run the skimfs program from publish to mount against parts that skimfs did not
// write. umoci says what an image is, nginx and squid carry it, chroot, bwrap and ch-run run programs in it. No test
// touches a mount from its own process.
package e2e
