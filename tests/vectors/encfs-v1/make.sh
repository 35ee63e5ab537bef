#!/usr/bin/env bash
# Makes the volume of format version 1 that is kept for ever, and the worked examples of
# docs/format-map.md with it. To be run when the format is not released yet, and never again: the
# point of the volume is that it was made by an early implementation.
#
#   tests/vectors/encfs-v1/make.sh [FUSE-ENCFS]
#
# closed/  the worked examples, unmounted
# killed/  every kind of thing, unmounted; changed, synced, and the daemon killed: the log has it
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
program="$(realpath "${1:-${CARGO_TARGET_DIR:-$root/target}/release/fuse-encfs}")"
id=00112233445566778899aabbccddeeff
reader=(python3 -B "$root/tests/reader/encfs_read.py")

# In a namespace of its own, so that no mount outlives the script.
if [[ -z "${MAKE_INNER:-}" ]]; then
  export MAKE_INNER=1
  exec unshare --mount --propagation private -- "$0" "$program"
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/mnt"
key="$here/key"
printf '\7%.0s' {1..32} >"$key"

daemon=
mount_it() { # store
  "$program" mount --foreground --key-file "$key" --volume-id "$id" \
    --control "$work/control" "$1" "$work/mnt" 2>>"$work/log" &
  daemon=$!
  until mountpoint -q "$work/mnt"; do
    kill -0 "$daemon" || { cat "$work/log" >&2; exit 1; }
    sleep 0.05
  done
}
fill() { # what
  (cd "$work/mnt" && python3 "$root/tests/reader/fill.py" "$1")
}
unmount_it() {
  umount "$work/mnt"
  wait "$daemon"
}
kill_it() {
  kill -KILL "$daemon"
  wait "$daemon" || true
  umount --lazy "$work/mnt"
}
# Zeros behind the last frame of a segment say the same as its end.
keep() { # name
  local object
  rm -rf "${here:?}/$1"
  mkdir "$here/$1"
  rm "$work/$1/lock"
  for object in "$work/$1"/*; do
    python3 - "$object" "$here/$1/$(basename "$object")" <<'PYTHON'
import sys

with open(sys.argv[1], "rb") as whole, open(sys.argv[2], "wb") as short:
    data = whole.read()
    used = len(data.rstrip(b"\0"))
    is_segment = len(data) >= 4096
    short.write(data[: -(-used // 512) * 512] if is_segment else data)
PYTHON
  done
  "${reader[@]}" "$here/$1" --key-file "$key" --volume-id "$id" >"$here/$1.json"
}

"$program" init --key-file "$key" --volume-id "$id" "$work/closed"
mount_it "$work/closed"
fill examples
unmount_it
"$program" init --key-file "$key" --volume-id "$id" "$work/killed"
mount_it "$work/killed"
fill base
unmount_it
mount_it "$work/killed"
fill more
kill_it
keep closed
keep killed
"${reader[@]}" "$here/closed" --key-file "$key" --parts >"$work/parts"
python3 - "$root/docs/format-map.md" "$work/parts" <<'PYTHON'
import sys

document, parts = (open(path, encoding="utf-8").read() for path in sys.argv[1:])
before, rest = document.split("<!-- parts -->\n")
_, after = rest.split("<!-- end of parts -->")
with open(sys.argv[1], "w", encoding="utf-8") as out:
    out.write(f"{before}<!-- parts -->\n{parts}<!-- end of parts -->{after}")
PYTHON
du -sb "$here"
