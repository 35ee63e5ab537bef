# Each target is one line to cargo or to a script. CARGO_TARGET_DIR is honoured everywhere.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
TARGET := $(CARGO_TARGET_DIR)
export PATH := $(TARGET)/tools/bin:$(PATH)

.PHONY: all build bin deps check test demo clean help

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

demo: bin ## the whole main job on this machine; KEEP=1 leaves it running
	$(TARGET)/sim/enclaveid-demo $(if $(KEEP),--keep)

clean: ## remove what was built
	cargo clean
