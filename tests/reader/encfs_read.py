#!/usr/bin/env python3
"""Reads an encrypted volume, from docs/format.md and docs/format-map.md alone.

Shares no code with the implementation. Verifies all that it reads, writes nothing, and prints the
tree as JSON: what is in it by its path (bytes that are no plain text as %XX). Ends with 1 and a
reason where the implementation would refuse the volume. Needs `pip install cryptography`.
"""
import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path
from urllib.parse import quote_from_bytes

from encfs.fields import CHAR, DATA, FILE, KINDS, LETTERS, LINK, LOG, NODE, ROOT, Extent, Refused, demand
from encfs.log import Log
from encfs.seal import Store, open_superblock, read_extent, siphash
from encfs.state import Volume
from encfs.tree import items, read_node


class Opened:
    def __init__(self, store, kek, expected):
        self.store = store
        self.keys, self.body = open_superblock(store, kek, expected)
        self.log = Log(store, self.keys, self.body)
        self.checkpoint = self.log.checkpoint()
        self.nodes = {number: ref for number, ref, _ in self.checkpoint.nodes}
        self.volume = Volume(self.body["name_key"], dict(self.checkpoint.counters))
        root, level = self.checkpoint.root, self.checkpoint.level
        demand(level <= 8, "levels")
        for key, value in items(store, self.keys, self.nodes, root, level, None, None):
            self.volume.load(key, value)
        self.volume.check()
        self.commits = self.log.commits(self.checkpoint)
        for frame, _ in self.commits:
            for op in frame.ops:
                self.volume.apply(op)
        self.volume.check()

    def data(self, extent):
        kind, ref, _ = self.volume.segments[extent.segment]
        demand(kind in (DATA, LOG), "an extent in a node segment")
        return read_extent(self.store, self.keys, kind, ref, extent)

    def contents(self, number, size):
        """The bytes of a map up to a size, piece by piece."""
        zeros, at = bytes(1 << 20), 0
        held = self.volume.maps.get(number)
        for start in (held.starts if held else []) + [size]:
            while at < min(start, size):
                piece = min(start - at, len(zeros), size - at)
                yield zeros[:piece]
                at += piece
            value = held.values.get(start) if held else None
            if isinstance(value, Extent) and start < size:
                yield self.data(value)
                at += value.live

    def attribute(self, value):
        return b"".join(self.contents(value[1], value[2])) if value[0] else value[1]

    def shown(self, number):
        inode = self.volume.inodes[number]
        out = {"kind": KINDS[inode.kind], "ino": number, "mode": f"{inode.perm:04o}", "nlink": inode.names}
        out |= {"uid": inode.user, "gid": inode.group, "size": inode.size}
        for name in ("access", "modified", "changed"):
            secs, nanos = getattr(inode, name)
            out[name] = f"{secs}.{nanos:09}"
        if inode.kind >= CHAR:
            device = inode.device
            out["device"] = [device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00]
        if inode.kind == LINK:
            out["target"] = quoted(inode.inline)
        if inode.kind == FILE:
            out["allocated"] = inode.covered
            try:
                digest = hashlib.sha256(inode.inline)
                behind = self.contents(number, inode.size) if not inode.inline else self.zeros(inode)
                for piece in behind:
                    digest.update(piece)
                out["sha256"] = digest.hexdigest()
            except Refused as e:
                out["damaged"] = str(e)
        named = self.volume.attributes.get(number, {})
        values = {quoted(name): self.attribute(value) for name, value in sorted(named.items())}
        out["xattrs"] = {name: hashlib.sha256(value).hexdigest() for name, value in values.items()}
        return out

    def zeros(self, inode):
        left = inode.size - len(inode.inline)
        while left:
            piece = min(left, 1 << 20)
            yield bytes(piece)
            left -= piece

    def walk(self):
        todo = [(ROOT, b"/")]
        while todo:
            number, path = todo.pop()
            yield path, number
            for ino, _, name in self.volume.entries.get(number, {}).values():
                todo.append((ino, path.rstrip(b"/") + b"/" + name))


def quoted(name):
    return quote_from_bytes(name, safe="/ !\"#$&'()*+,-.:;<=>?@[\\]^_`{|}~")


def parts(opened):
    """Rows for the worked examples: each file of the root directory that is named size-N."""
    keys, body = opened.keys, opened.body
    epoch = max(keys.vmks)
    place, seq = body["newest"]
    rows = [("VMK, unwrapped", keys.vmks[epoch]), ("genesis", body["genesis"]), ("key of names", body["name_key"])]
    rows += [(f"`l{place.ref.uid.hex()}`: parent of its commits", keys.commits(place.ref))]
    clear = opened.store.read(LOG, place.ref, place.offset, 64)
    rows += [(f"frame of the CHECKPOINT there, seq {seq}, at {place.offset}: its head", clear)]
    frame = opened.log.named(place, "checkpoint")
    rows += [("chain's head before it", frame.before), ("chain's head after it", frame.head)]
    root = opened.checkpoint.root
    ref = opened.nodes[root.segment]
    rows += [(f"`n{ref.uid.hex()}`: key of its nodes", keys.segment(NODE, ref))]
    rows += [(f"root: level {opened.checkpoint.level}, {root.length} bytes at {root.offset}: AAD", keys.aad(2, ref, root.offset, root.length))]
    rows += [("root: nonce", struct.pack(">I", root.offset // 16) + root.salt)]
    rows += [("root: first 8 bytes of plaintext", read_node(opened.store, keys, opened.nodes, root)[:8])]
    flat = dict(items(opened.store, keys, opened.nodes, root, opened.checkpoint.level, None, None))
    for path, number in sorted(opened.walk(), key=lambda found: found[1]):
        if not path.startswith(b"/size-"):
            continue
        name = path.decode()[1:]
        hashed = struct.pack(">Q", siphash(body["name_key"], name.encode()))
        cookie = opened.volume.names[ROOT][name.encode()]
        key = bytes([1]) + struct.pack(">Q", number) + b"\0"
        of_root = bytes([1]) + struct.pack(">Q", ROOT)
        entry = of_root + b"\x01" + struct.pack(">Q", cookie)
        rows += [(f"`{name}`: hash of the name", hashed), ("key of its entry", entry), ("value", flat[entry])]
        rows += [("key of its inode", key), ("value", flat[key])]
        held = opened.volume.maps.get(number)
        for start in held.starts if held else []:
            key, extent = bytes([1]) + struct.pack(">QBQ", number, 3, start), held.values[start]
            kind, ref, _ = opened.volume.segments[extent.segment]
            rows += [("key of its extent", key), ("value", flat[key])]
            rows += [(f"segment `{LETTERS[kind]}{ref.uid.hex()}`: key of its units", keys.segment(kind, ref))]
            for i, (offset, length) in enumerate(extent.chunks()):
                sealed = opened.store.read(kind, ref, offset, length + 16)
                rows += [(f"chunk {i}: AAD", keys.aad({DATA: 1, LOG: 3}[kind], ref, offset, length))]
                rows += [(f"chunk {i}: nonce", struct.pack(">I", offset // 16) + extent.salt)]
                rows += [(f"chunk {i}: first 16 bytes stored, of {length + 16}", sealed[:16]), (f"chunk {i}: tag", sealed[-16:])]
    return "\n".join(["| what | hex |", "|---|---|"] + [f"| {what} | `{value.hex()}` |" for what, value in rows])


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("store", type=Path, help="directory that holds the volume")
    arguments.add_argument("--key-file", type=Path, required=True, help="32 bytes, or 64 hexadecimal digits")
    arguments.add_argument("--volume-id", type=bytes.fromhex, help="which volume it must be")
    arguments.add_argument("--parts", action="store_true", help="print the worked examples instead of the tree")
    given = arguments.parse_args()
    kek = given.key_file.read_bytes()
    kek = kek if len(kek) == 32 else bytes.fromhex(kek.decode().strip())
    try:
        opened = Opened(Store(given.store), kek, given.volume_id)
        if given.parts:
            print(parts(opened))
            return 0
        tree = {quoted(path): opened.shown(number) for path, number in opened.walk()}
    except Refused as e:
        print(f"refused: {e}", file=sys.stderr)
        return 1
    last = opened.commits[-1][0] if opened.commits else None
    shown = {
        "volume": opened.keys.volume.hex(),
        "seq": last.seq if last else opened.checkpoint.as_of,
        "head": (last.head if last else opened.checkpoint.head).hex(),
        "replayed": len(opened.commits),
        "levels": opened.checkpoint.level + 1,
        "torn": opened.log.torn,
        "tree": tree,
    }
    json.dump(shown, sys.stdout, indent=1, sort_keys=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
