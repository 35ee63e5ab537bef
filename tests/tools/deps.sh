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
# What is let loose on a mount.
need 'command -v git' git
need 'command -v fio' fio
need 'command -v stress-ng' stress-ng
need 'command -v dbench' dbench
need 'python3 -c "import sqlite3"' python3
need 'ls /usr/lib/postgresql/*/bin/initdb' postgresql
if ((${#packages[@]})); then
  install="apt-get install -y --no-install-recommends ${packages[*]}"
  if [[ "$(id -u)" != 0 ]]; then
    echo "deps: missing packages; run: sudo $install" >&2
    exit 69
  fi
  echo "deps: $install"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  if [[ " ${packages[*]} " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
    # The programs alone: the package would also make a database and start its server.
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  $install >/dev/null
fi
command -v cargo >/dev/null || { echo "deps: Rust 1.95 is presupposed: https://rustup.rs" >&2; exit 69; }
if ! command -v cargo-nextest >/dev/null; then
  echo "deps: cargo install cargo-nextest"
  cargo install --quiet --locked cargo-nextest --version 0.9.143 --root "$target/tools"
fi
if ! [[ -x "$target/tools/bin/fsx" ]]; then
  echo "deps: cargo install fsx"
  CARGO_TARGET_DIR="$target/tools/build" cargo install --quiet --locked fsx \
    --version 0.3.2 --root "$target/tools"
fi
# The second reader of volumes has its AES-GCM from there.
if ! PYTHONPATH="$target/tools/python" python3 -c 'import cryptography' 2>/dev/null; then
  echo "deps: pip install cryptography, into $target/tools/python"
  python3 -m pip install --quiet --disable-pip-version-check --target "$target/tools/python" \
    'cryptography>=42,<49'
fi
./tests/tools/get-envoy.sh
