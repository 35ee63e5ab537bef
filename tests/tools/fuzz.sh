#!/usr/bin/env bash
# Builds the fuzz targets once and runs each for some seconds, as many at a time as there are CPUs.
# What makes one fail is left in the folder that the last line names; keep it in fuzz/regressions.
# usage: fuzz.sh SECONDS [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds="${1:?seconds for each target}"
shift
target="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
triple=x86_64-unknown-linux-gnu

# Options of a stable compiler: counters at every edge, comparisons shown to the engine. Only the
# target is built so, not what runs while it is built, hence --target.
flags=(
  --cfg fuzzing
  -C passes=sancov-module
  -C llvm-args=-sanitizer-coverage-level=4
  -C llvm-args=-sanitizer-coverage-inline-8bit-counters
  -C llvm-args=-sanitizer-coverage-pc-table
  -C llvm-args=-sanitizer-coverage-trace-compares
)
RUSTFLAGS="${flags[*]}" cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml \
  --target "$triple" --target-dir "$target"
program="$target/$triple/release/fuzz"

names=("$@")
if ((${#names[@]} == 0)); then
  mapfile -t names < <("$program" --list)
fi
mkdir -p "$target/corpus" "$target/crashes" "$target/logs"

run() { # name
  local name="$1" kept=()
  mkdir -p "$target/corpus/$name"
  [[ -d "fuzz/regressions/$name" ]] && kept+=("fuzz/regressions/$name")
  if "$program" "--target=$name" "--seeds=$target/corpus/$name" -max_total_time="$seconds" \
    -max_len=8192 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$target/crashes/$name-" "$target/corpus/$name" "${kept[@]}" \
    >"$target/logs/$name" 2>&1; then
    printf 'fuzz: %-16s %8d inputs, %s\n' "$name" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$target/logs/$name")" \
      "$(grep -o 'cov: [0-9]*' "$target/logs/$name" | tail -1)"
  else
    tail -40 "$target/logs/$name"
    echo "fuzz: $name FAILED, see $target/crashes"
    return 1
  fi
}
export -f run
export target program seconds
printf '%s\n' "${names[@]}" | xargs -P "$(nproc)" -I{} bash -c 'run {}'
