#!/usr/bin/env bash
# Installs what the build, the demo and the tests need. Says what it does; does nothing twice.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-$PWD/target}"

# Debian packages: command that shows it is there, package that brings it.
packages=()
need() { # test command, package
  eval "$1" >/dev/null 2>&1 || packages+=("$2")
}
need 'command -v cc' gcc
need 'test -e /usr/include/stdio.h' libc6-dev
need 'command -v make' make
need 'command -v perl' perl
need 'command -v python3' python3
need 'python3 -m pip --version' python3-pip
need 'command -v umount' mount
need 'command -v setpriv' util-linux
need 'command -v shellcheck' shellcheck
if ((${#packages[@]})); then
  install="apt-get install -y --no-install-recommends ${packages[*]}"
  if [[ "$(id -u)" != 0 ]]; then
    echo "deps: missing packages; run: sudo $install" >&2
    exit 69
  fi
  echo "deps: $install"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  $install >/dev/null
fi
command -v cargo >/dev/null || { echo "deps: Rust 1.95 is presupposed: https://rustup.rs" >&2; exit 69; }
if ! command -v cargo-nextest >/dev/null; then
  echo "deps: cargo install cargo-nextest"
  cargo install --quiet --locked cargo-nextest --version 0.9.143 --root "$target/tools"
fi
./tests/tools/get-envoy.sh
