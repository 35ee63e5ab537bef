#!/usr/bin/env bash
# Formatting, lints, documentation and dependency policy. Warnings are errors here, never in the
# sources: a new compiler must not break an old commit.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-$PWD/target}"
export PATH="$target/tools/bin:$PATH"

cargo fmt --all --check
cargo clippy --locked --workspace --all-targets --features enclaveid/simulator -- -D warnings
cargo clippy --locked -p enclaveid -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items -q
if ! command -v cargo-deny >/dev/null; then
  echo "check: cargo install cargo-deny"
  CARGO_TARGET_DIR="$target/tools/build" cargo install --quiet --locked cargo-deny \
    --version 0.20.2 --root "$target/tools"
fi
cargo deny --log-level error check bans licenses sources
shellcheck tests/tools/*.sh tests/vectors/*/*.sh .ci/run
