#!/usr/bin/env python3
"""Fills the current directory, the root of a mounted volume: with the `examples` of
docs/format-map.md; or with every kind of thing that the format can hold, `base`, and then `more`,
which changes it in every way that the log can say.
"""

import argparse
import ctypes
import os
import stat
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
EXCHANGE, WHITEOUT = 2, 4
AT_FDCWD = -100
# Owner rwx, user 7 rwx, group r-x, mask rwx, others nothing.
LIST = bytes.fromhex(
    "02000000 01000700ffffffff 0200070007000000 04000500ffffffff 10000700ffffffff 20000000ffffffff"
)


def pattern(seed, length):
    return bytes((i * 7 + i // 251 + seed * 31) % 255 + 1 for i in range(length))


def checked(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), "libc")


def fallocate(path, mode, offset, length):
    with open(path, "r+b") as f:
        checked(LIBC.fallocate(f.fileno(), mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def rename(old, new, flags):
    checked(LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def write(path, data, at=0, sync=False):
    with open(path, "r+b" if os.path.exists(path) else "wb", buffering=0) as f:
        f.seek(at)
        f.write(data)
        if sync:
            os.fsync(f.fileno())


def share(source, source_at, target, target_at, length):
    with open(source, "rb") as a, open(target, "r+b" if os.path.exists(target) else "wb") as b:
        while length:
            n = os.copy_file_range(a.fileno(), b.fileno(), length, source_at, target_at)
            source_at, target_at, length = source_at + n, target_at + n, length - n


def examples():
    for length in (0, 1, 4096, 5000):
        write(f"size-{length}", b"A" * length)


def base(names, large):
    write("small", pattern(1, 2048))
    write("not-small", pattern(2, 2049))
    write("small-and-zeros", pattern(3, 10))
    os.truncate("small-and-zeros", large and 3_000_000 or 100_000)
    os.makedirs("a/b/c")
    os.mkdir("gone")
    write("a/file", pattern(4, 5000))
    os.link("a/file", "a/b/same")
    os.symlink("../file", "a/b/link")
    os.symlink("x/" * 2000, "a/long-link")
    write(b"n" * 255, b"longest")
    write(bytes(b for b in range(1, 256) if b != 0x2F), b"odd")
    os.mkfifo("fifo", 0o600)
    os.mknod("socket", stat.S_IFSOCK | 0o666)
    os.mknod("char", stat.S_IFCHR | 0o620, os.makedev(5, 1))
    os.mknod("block", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    write("sparse", pattern(5, 5000), at=large and 33_000_000 or 100_000)
    os.truncate("sparse", large and 64_000_000 or 300_000)
    write("promised", pattern(6, 3000), at=50_000)
    fallocate("promised", 0, 0, 200_000)
    fallocate("promised", KEEP_SIZE, 300_000, 50_000)
    write("changed", pattern(7, 40_000), sync=True)
    write("changed", pattern(8, 4000), at=5001)
    fallocate("changed", PUNCH_HOLE | KEEP_SIZE, 20_000, 4096)
    os.truncate("changed", 35_001)
    write("rides", pattern(9, 6000), sync=True)
    write("rides", pattern(10, 100), at=4000, sync=True)
    share("changed", 1000, "copy", 3, 30_000)
    write("big", pattern(11, large and 3_000_000 or 12_000))
    os.chmod("a/file", 0o4755)
    os.chown("a/file", 1000, 1001)
    os.chmod("a/file", 0o6751)
    os.chmod("a/b", 0o1777)
    os.setxattr("big", "user.short", b"value")
    os.setxattr("big", "user.long", pattern(12, 5000))
    os.setxattr("big", "user.empty", b"")
    os.setxattr("big", "trusted.t", pattern(13, 1024))
    os.setxattr("char", "security.x", b"\0\xff")
    os.setxattr("a/b", "system.posix_acl_access", LIST)
    os.setxattr("a/b", "system.posix_acl_default", LIST)
    write("a/b/inherits", b"")
    os.utime("small", ns=(-300_000_000_123_456_789, -1))
    os.utime("a/b/link", ns=(1, 2), follow_symlinks=False)
    os.mkdir("many")
    for i in range(names):
        write(f"many/{i}", b"%d" % i)


def more(names, large):
    write("rides", pattern(20, 3000), at=9000, sync=True)
    write("rides-too", pattern(21, 12_000), sync=True)
    write("rides-too", pattern(22, 5000), at=7000, sync=True)
    write("big", pattern(23, 9000), at=5000)
    write("many/new", b"inline", sync=True)
    os.rename("many/1", "many/moved")
    os.rename("many/2", "many/3")
    rename("many/4", "small-and-zeros", EXCHANGE)
    rename("many/5", "whited-out", WHITEOUT)
    os.makedirs("x/y")
    rename("a/b", "x", EXCHANGE)
    os.rename("x/c", "c")
    os.unlink("a/file")
    os.link("char", "char-too")
    os.rmdir("gone")
    for i in range(10, names, 3):
        os.unlink(f"many/{i}")
    os.truncate("not-small", 10)
    os.truncate("small", 300)
    os.truncate("sparse", 101_000)
    fallocate("rides-too", PUNCH_HOLE | KEEP_SIZE, 100, 9000)
    fallocate("changed", ZERO_RANGE, 3000, 2000)
    fallocate("copy", 0, 0, 60_000)
    share("big", 4000, "changed", 1, 9000)
    os.setxattr("big", "user.short", pattern(24, 3000))
    os.setxattr("big", "user.long", b"short")
    os.removexattr("big", "user.empty")
    os.chmod("promised", 0o600)
    os.chown("promised", 7, -1)
    os.utime("promised", ns=(5, 2**33 * 10**9 + 6))
    for i in range(large and 150 or 0):
        # More than the first log segment of a mount holds.
        write("fills-the-log", pattern(25, 9000), at=i * 8000, sync=True)
    os.sync()
    root = os.open(".", os.O_RDONLY)
    os.fsync(root)
    os.close(root)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("what", choices=["examples", "base", "more"])
    arguments.add_argument("--names", type=int, default=60, help="names in one directory")
    arguments.add_argument("--large", action="store_true", help="files of megabytes too")
    given = arguments.parse_args()
    assert Path("/").stat().st_dev != Path(".").stat().st_dev, "this is no mount"
    os.umask(0o022)
    if given.what == "examples":
        examples()
    elif given.what == "base":
        base(given.names, given.large)
    else:
        more(given.names, given.large)


if __name__ == "__main__":
    main()
