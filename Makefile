# Each target is one line to cargo or to a script. CARGO_TARGET_DIR is honoured everywhere.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
TARGET := $(CARGO_TARGET_DIR)
BINDIR ?= /usr/bin
# Where mount(8) looks for helpers.
SBINDIR ?= /sbin
export PATH := $(TARGET)/tools/bin:$(PATH)

.PHONY: all build bin deps check test soak crash fuzz mutants demo install clean help

all: build ## build everything there is to ship

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

deps: ## install what the build, the demo and the tests need
	@./tests/tools/deps.sh

build: bin ## build the programs: target/release, and with the simulator target/sim

# The simulator build comes first and is copied away, then the product: one shared target
# directory, and no feature of the first can end up in the second (ARCHITECTURE.md, invariant 8).
bin: deps
	cargo build --locked --release -p enclaveid -p enclaveid-tests --features enclaveid/simulator
	@mkdir -p $(TARGET)/sim && cp $(TARGET)/release/enclaveid $(TARGET)/release/enclaveid-demo \
	  $(TARGET)/release/enclaveid-emulators $(TARGET)/sim/
	cargo build --locked --release -p enclaveid -p fuse-encfs
	@cp $(TARGET)/release/fuse-encfs $(TARGET)/sim/

check: deps ## formatting, lints, documentation, dependency policy
	@./tests/tools/check.sh

test: bin ## run every test
	cargo nextest run --locked --workspace --profile $(if $(CI),ci,default)
	cargo test --locked --workspace --doc -q

soak: bin ## real programs and kills for longer: ENCLAVEID_SECONDS=crash=600,fsx=60 ENCLAVEID_SEED=N
	cargo nextest run --locked -p enclaveid-tests --profile soak

# An option for this crate alone: everything below it is that of `make test`.
crash: ## at least 20,000 states that a crash leaves of a volume, each mounted and judged
	cargo nextest run --locked -p fuse-encfs --lib --profile crash \
	  --config 'profile.dev.package.fuse-encfs.opt-level=2' \
	  --config 'profile.dev.package.fuse-encfs.debug-assertions=false'

SECONDS ?= 15
fuzz: ## any bytes for every parser: SECONDS=600 for each, TARGETS="node commit" for some alone
	@./tests/tools/fuzz.sh $(SECONDS) $(TARGETS)

mutants: ## small faults put into format, crypto and log, each to be found by a test: SHARD=0/8
	@./tests/tools/mutants.sh $(SHARD)

demo: bin ## the whole main job on this machine; KEEP=1 leaves it running
	$(TARGET)/sim/enclaveid-demo $(if $(KEEP),--keep)

install: ## what `make bin` has built of fuse-encfs, and the helper of mount(8), below DESTDIR
	install -D -m 755 $(TARGET)/release/fuse-encfs $(DESTDIR)$(BINDIR)/fuse-encfs
	@mkdir -p $(DESTDIR)$(SBINDIR)
	ln -sf $(BINDIR)/fuse-encfs $(DESTDIR)$(SBINDIR)/mount.fuse.fuse-encfs

clean: ## remove what was built
	cargo clean
