"""Fields, and the structures that several parts of a volume name."""

from collections import namedtuple

SEGMENT_LEN_MAX = 1 << 28
BEGIN = 4096
KINDS = {1: "file", 2: "directory", 3: "link", 4: "fifo", 5: "socket", 6: "char", 7: "block"}
FILE, DIRECTORY, LINK, CHAR = 1, 2, 3, 6
DATA, NODE, LOG = 1, 2, 3
LETTERS = {DATA: "d", NODE: "n", LOG: "l"}
ROOT = 1


class Refused(Exception):
    """The volume, or a part of it, is not what the format says."""


def demand(condition, what):
    if not condition:
        raise Refused(what)


class Fields:
    """Takes fields from the front of bytes."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def bytes(self, n):
        demand(self.at + n <= len(self.data), f"{self.what}: too short")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, n):
        return int.from_bytes(self.bytes(n), "little")

    def u8(self):
        return self.number(1)

    def u16(self):
        return self.number(2)

    def u32(self):
        return self.number(4)

    def u64(self):
        return self.number(8)

    def be(self, n):
        return int.from_bytes(self.bytes(n), "big")

    def flag(self):
        value = self.u8()
        demand(value <= 1, f"{self.what}: no flag")
        return value == 1

    def time(self):
        secs = int.from_bytes(self.bytes(8), "little", signed=True)
        nanos = self.u32()
        demand(nanos < 10**9, f"{self.what}: time")
        return secs, nanos

    def maybe_time(self):
        return self.time() if self.flag() else None

    def ref(self):
        return Ref(self.bytes(16), self.u32())

    def place(self):
        place = Place(self.ref(), self.u64())
        demand(place.offset <= SEGMENT_LEN_MAX, f"{self.what}: place")
        return place

    def name(self):
        name = self.bytes(self.u8())
        good = name and name not in (b".", b"..") and b"/" not in name and b"\0" not in name
        demand(good, f"{self.what}: name")
        return name

    def attribute(self):
        name = self.bytes(self.u8())
        demand(name and b"\0" not in name, f"{self.what}: name")
        return name

    def many(self, each):
        return [each() for _ in range(self.u32())]

    def rest(self):
        return self.bytes(len(self.data) - self.at)

    def zeros(self, n=None):
        rest = self.rest() if n is None else self.bytes(n)
        demand(not any(rest), f"{self.what}: reserved bytes")

    def end(self):
        demand(self.at == len(self.data), f"{self.what}: too long")

    def extent(self):
        return Extent.parse(self)


Ref = namedtuple("Ref", "uid epoch")
Place = namedtuple("Place", "ref offset")
Pointer = namedtuple("Pointer", "segment offset length salt")
Unwritten = namedtuple("Unwritten", "live")


class Extent(namedtuple("Extent", "segment offset live head sealed shift salt")):
    @classmethod
    def parse(cls, r):
        e = cls(r.u32(), r.number(5), r.number(3), r.u16(), r.number(3), r.u8(), r.bytes(8))
        good = 12 <= e.shift <= 16 and e.live > 0 and e.head < 1 << e.shift
        good = good and e.head + e.live <= e.sealed and e.sealed % 64 == 0
        good = good and e.offset % 16 == 0 and e.offset >= BEGIN and e.end() <= SEGMENT_LEN_MAX
        demand(good, "extent")
        return e

    def end(self):
        return self.offset + self.sealed + 16 * -(-self.sealed // (1 << self.shift))

    def chunks(self):
        """Offset and plaintext bytes of each chunk that it covers."""
        size = 1 << self.shift
        for i in range(-(-(self.head + self.live) // size)):
            yield self.offset + i * (size + 16), min(size, self.sealed - i * size)

    def skip(self, n):
        q, head = divmod(self.head + n, 1 << self.shift)
        offset = self.offset + q * ((1 << self.shift) + 16)
        return self._replace(offset=offset, live=self.live - n, head=head, sealed=self.sealed - (q << self.shift))


def skipped(value, n):
    return Unwritten(value.live - n) if isinstance(value, Unwritten) else value.skip(n)


def kept(value, n):
    return value._replace(live=min(value.live, n))


class Inode:
    def __init__(self, value):
        r = Fields(value, "inode")
        self.kind = r.u8()
        demand(self.kind in KINDS, "inode: kind")
        r.zeros(1)
        self.perm = r.u16()
        self.names, self.user, self.group, self.device = (r.u32() for _ in range(4))
        self.size = r.u64()
        self.access, self.modified, self.changed = (r.time() for _ in range(3))
        self.parent, self.cookie, self.covered = (r.u64() for _ in range(3))
        self.attributes = r.u32()
        self.inline = r.bytes(r.u16())
        r.end()
        n = len(self.inline)
        fits = {FILE: n <= min(2048, self.size), LINK: 1 <= n <= 4095}.get(self.kind, n == 0)
        demand(self.perm <= 0o7777 and fits, "inode: permissions or inline bytes")

    @classmethod
    def new(cls, kind, perm, user, group, device, time, parent, target):
        ino = cls.__new__(cls)
        ino.kind, ino.perm, ino.user, ino.group, ino.device = kind, perm, user, group, device
        ino.access = ino.modified = ino.changed = time
        is_dir = kind == DIRECTORY
        ino.names, ino.parent, ino.cookie = (2, parent, 3) if is_dir else (1, 0, 0)
        ino.covered = ino.attributes = 0
        ino.inline, ino.size = target, len(target)
        return ino

    def stamp(self, time):
        self.modified = self.changed = time

    def written(self, time, kills):
        if time is not None:
            self.modified, self.changed = time, max(self.changed, time)
        if kills:
            self.perm &= ~(0o6000 if self.perm & 0o010 else 0o4000)
