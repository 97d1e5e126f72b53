# The targets are the interface: CI and packages use nothing else. `make` lists them.
GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
OUT     ?= bin
BINDIR  ?= $(PREFIX)/bin
SBINDIR ?= /sbin
UNITDIR ?= $(PREFIX)/lib/systemd/system
EXAMPLES = $(PREFIX)/share/doc/skimfs/examples

# What `make test` runs with the race detector: all that holds goroutines. The rest drives programs, or converts whole images, which takes
# the detector minutes: `make race` has that, and ONCE is of it what does several things at once. The soak comes first and beside the others, since it takes
# two minutes and sleeps in most of them, then what takes longest. What is counted in ALONE wants nothing beside it.
PLAIN := ./benchmarks/soak ./internal/... ./cmd/... ./publish
ALONE := ./benchmarks
ONCE  := SideBySide|ReadersNeverSee|MirrorAndPublisher|Mirror.*Interrupted|AllSources|BrokenDownloads
RACE   = $(filter-out $(shell $(GO) list $(PLAIN) $(ALONE)),$(shell $(GO) list ./...))
FUZZTIME ?= 20s
SOAK ?= 10m
TESTFLAGS ?=
BENCHFLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help build deps test test-long race fuzz lint bench bench-big soak docs install uninstall deb rpm clean demo demo-stop FORCE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

build: $(OUT)/skimfs ## compile bin/skimfs, one static binary

$(OUT)/skimfs: FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w $(if $(VERSION),-X main.release=$(VERSION))' -o $@ ./cmd/skimfs

deps: ## install the Debian packages that tests and demo need (as root)
	scripts/deps

test: deps lint ## run all tests, about 12 minutes
	$(GO) test -race -timeout 15m $(TESTFLAGS) $(RACE)
	$(GO) test -race -timeout 15m $(TESTFLAGS) -run '$(ONCE)' ./publish
	$(GO) test -p $$(($$(nproc) + 1)) -timeout 15m $(TESTFLAGS) $(PLAIN)
	$(GO) test -timeout 15m $(TESTFLAGS) $(ALONE)

test-long: deps ## compare 2000 random images with umoci; the cache at many random instants; kill publishd 80 times with 100 jobs each (as root)
	SKIMFS_KILLS=20 $(GO) test -timeout 60m $(TESTFLAGS) -v -run '^TestKilledDaemonLosesNothing$$' ./publishd
	SKIMFS_ROUNDS=100 $(GO) test -timeout 30m $(TESTFLAGS) -run '^(TestPowerLoss|TestKillAtAnyPoint|TestDamageToAnyFileWhileRunning)$$' ./cachedb
	SKIMFS_STACKS=2000 $(GO) test -timeout 40m $(TESTFLAGS) -run '^TestRandomStacks$$' ./internal/e2e

race: deps ## run all tests with the race detector, skimfs itself too
	$(GO) test -race -timeout 40m $(TESTFLAGS) ./...

fuzz: ## run each fuzz target for FUZZTIME (20s)
	@for dir in $$($(GO) list -f '{{.Dir}}' ./...); do \
		for target in $$(cat /dev/null $$dir/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p'); do \
			echo "$$dir $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 0x $$dir || exit 1; \
		done; \
	done

lint: ## check form, go vet and staticcheck (staticcheck.conf says why)
	@unformatted=$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)); \
		[ -z "$$unformatted" ] || { echo "gofmt -w" $$unformatted >&2; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: deps ## measure skimfs beside its peers, about 11 minutes; BENCHFLAGS="-many -big -shapes" for more (as root)
	@mkdir -p .bench
	$(GO) run ./benchmarks -md .bench/results.md -json .bench/results.json -png .bench/results.png $(BENCHFLAGS)

bench-big: deps ## measure the image of 9 GB, about 15 minutes, 45 GB of disk (as root)
	@mkdir -p .bench
	$(GO) run ./benchmarks -shape-big -only '^shape big/' -md .bench/big.md -json .bench/big.json -png .bench/big.png $(BENCHFLAGS)

soak: deps ## hold a daemon under load for SOAK (10m) (as root)
	SKIMFS_SOAK=$(SOAK) $(GO) test -v -count=1 -timeout 60m $(TESTFLAGS) ./benchmarks/soak

demo: build ## publish, mount and run a real image; ends with a table, leaves it mounted
	scripts/demo

demo-stop: ## end what the demo left running; its files stay until `make clean`
	scripts/demo stop

docs: build ## write man pages and completions, made from the command table, to bin/
	rm -rf $(OUT)/man $(OUT)/completion && mkdir -p $(OUT)/completion
	$(OUT)/skimfs man $(OUT)/man
	for shell in bash zsh fish; do $(OUT)/skimfs completion $$shell >$(OUT)/completion/skimfs.$$shell; done

install: docs ## install below PREFIX (/usr/local); DESTDIR for packages
	install -D -m 0755 $(OUT)/skimfs $(DESTDIR)$(BINDIR)/skimfs
	install -d $(DESTDIR)$(SBINDIR) && for name in mount.skimfs mount.fuse.skimfs; do ln -sf $(BINDIR)/skimfs $(DESTDIR)$(SBINDIR)/$$name; done
	for section in 1 8; do install -d $(DESTDIR)$(PREFIX)/share/man/man$$section && install -m 0644 $(OUT)/man/*.$$section $(DESTDIR)$(PREFIX)/share/man/man$$section/; done
	install -D -m 0644 $(OUT)/completion/skimfs.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/skimfs
	install -D -m 0644 $(OUT)/completion/skimfs.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_skimfs
	install -D -m 0644 $(OUT)/completion/skimfs.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/skimfs.fish
	install -D -m 0644 packaging/skimfs.conf $(DESTDIR)$(PREFIX)/share/doc/skimfs/skimfs.conf
	install -D -m 0644 packaging/grafana/skimfs.json $(DESTDIR)$(PREFIX)/share/doc/skimfs/grafana.json
	install -D -m 0644 packaging/bee/skimfs_bee.py $(DESTDIR)$(PREFIX)/share/skimfs/bee/skimfs_bee.py
	install -D -m 0644 packaging/bee/task.cwl $(DESTDIR)$(PREFIX)/share/skimfs/bee/task.cwl
	install -D -m 0755 packaging/htcondor/condor-probe $(DESTDIR)$(PREFIX)/libexec/skimfs/condor-probe
	for dir in htcondor nginx slurm squid; do install -d $(DESTDIR)$(EXAMPLES)/$$dir && install -m 0644 packaging/$$dir/* $(DESTDIR)$(EXAMPLES)/$$dir/; done
	rm $(DESTDIR)$(EXAMPLES)/htcondor/condor-probe && chmod 0755 $(DESTDIR)$(EXAMPLES)/slurm/*
	sed -i 's|/usr/libexec|$(PREFIX)/libexec|' $(DESTDIR)$(EXAMPLES)/htcondor/50-skimfs.conf
	install -d $(DESTDIR)$(UNITDIR) && install -m 0644 packaging/systemd/* $(DESTDIR)$(UNITDIR)/
	sed -i 's|^\(Exec[A-Za-z]*\)=/usr/bin/skimfs|\1=$(BINDIR)/skimfs|' $(addprefix $(DESTDIR)$(UNITDIR)/,$(notdir $(wildcard packaging/systemd/*.service)))

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(BINDIR)/skimfs $(DESTDIR)$(SBINDIR)/mount.skimfs $(DESTDIR)$(SBINDIR)/mount.fuse.skimfs $(DESTDIR)$(PREFIX)/share/man/man1/skimfs.1 $(DESTDIR)$(PREFIX)/share/man/man1/skimfs-*.1 $(DESTDIR)$(PREFIX)/share/man/man8/mount*.skimfs.8 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/skimfs $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_skimfs \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/skimfs.fish $(addprefix $(DESTDIR)$(UNITDIR)/,$(notdir $(wildcard packaging/systemd/*))) \
		$(DESTDIR)$(PREFIX)/share/doc/skimfs/skimfs.conf $(DESTDIR)$(PREFIX)/share/doc/skimfs/grafana.json
	rm -rf $(DESTDIR)$(PREFIX)/share/skimfs $(DESTDIR)$(EXAMPLES) $(DESTDIR)$(PREFIX)/libexec/skimfs

deb: ## make bin/skimfs_*.deb with nfpm; VERSION=0.1.0
	scripts/package deb

rpm: ## make bin/skimfs-*.rpm with nfpm; VERSION=0.1.0
	scripts/package rpm

clean: demo-stop ## remove what was built; the cached images stay
	rm -rf bin .demo .bench
