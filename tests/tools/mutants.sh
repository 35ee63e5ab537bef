#!/usr/bin/env bash
# Puts small faults into the format, the cryptography and the log of fuse-encfs, one at a time, and
# runs the tests of these floors against each. Ends with 2 when one is found by none of them.
# usage: mutants.sh [SHARD/OF]     a part of them: all take hours
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-$PWD/target}"
if ! [[ -x "$target/tools/bin/cargo-mutants" ]]; then
  echo "mutants: cargo install cargo-mutants"
  CARGO_TARGET_DIR="$target/tools/build" cargo install --quiet --locked cargo-mutants \
    --version 27.1.0 --root "$target/tools"
fi
shard=()
[[ -n "${1:-}" ]] && shard=(--shard "$1")
# Each is built in a copy of the tree with a target directory of its own.
unset CARGO_TARGET_DIR
exec "$target/tools/bin/cargo-mutants" mutants --package fuse-encfs --output "$target/mutants" \
  --config tests/tools/mutants.toml "${shard[@]}"
