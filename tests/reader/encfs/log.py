"""The log: frames, commits and operations, and what of them counts."""

import hashlib
from collections import namedtuple

from .fields import BEGIN, KINDS, LETTERS, LINK, LOG, SEGMENT_LEN_MAX, Fields, Place, Refused, demand
from .seal import LABEL, open_once, read_extent, u64
from .tree import pointer

Frame = namedtuple("Frame", "place length inline_at inline seq epoch before durable ops head")
Open = namedtuple("Open", "epoch number ref cut cut_head")
Checkpoint = namedtuple("Checkpoint", "as_of head next root level nodes counters")


class Log:
    def __init__(self, store, keys, body):
        self.store, self.keys, self.body = store, keys, body
        self.torn = False

    def frame(self, place):
        """The frame at a place; None for zeros, False for bytes that do not open."""
        raw = self.store.read(LOG, place.ref, place.offset, 64)
        if not any(raw):
            return None
        try:
            return self.open(place, raw)
        except Refused:
            return False

    def open(self, place, clear):
        r = Fields(clear, "frame")
        demand(r.bytes(8) == b"encfs1fr", "frame")
        s, inline, length = r.u32(), r.u32(), r.u32()
        r.zeros()
        demand(48 <= s <= (16 << 20) + 48 and inline <= 16 << 20, "frame: lengths")
        alignment = self.body["alignment"]
        demand(length == -(-(64 + s + inline) // alignment) * alignment, "frame: lengths")
        end = place.offset + length
        demand(end <= SEGMENT_LEN_MAX and end <= self.store.len(LOG, place.ref), "frame: end")
        sealed = self.store.read(LOG, place.ref, place.offset + 64, s)
        aad = self.keys.aad(4, place.ref, place.offset, s - 48) + clear
        plain = open_once(self.keys.commits(place.ref), b"once-commit/", sealed, aad, "commit")
        c = Fields(plain, "commit")
        seq, epoch, before, durable = c.u64(), c.u64(), c.bytes(32), c.u64()
        c.zeros(4)
        ops = c.many(lambda: operation(c))
        c.zeros()
        link = u64(seq) + u64(epoch) + place.ref.uid + u64(place.offset) + u64(s)
        head = hashlib.sha256(LABEL + b"head/next/" + before + link + hashlib.sha256(sealed).digest()).digest()
        return Frame(place, length, place.offset + 64 + s, inline, seq, epoch, before, durable, ops, head)

    def named(self, place, what):
        frame = self.frame(place)
        demand(frame, f"{what} is not what was written")
        return frame

    def checkpoint(self):
        place, seq = self.body["newest"]
        frame = self.named(place, "checkpoint")
        demand(frame.seq == seq and len(frame.ops) == 1 and frame.ops[0][0] == "checkpoint", "checkpoint")
        found = frame.ops[0][1]
        demand(found.as_of < seq, "checkpoint: as_of")
        return found

    def opening(self, ref):
        frame = self.named(Place(ref, BEGIN), "beginning of a log segment")
        demand(len(frame.ops) == 1 and frame.ops[0][0] == "open", "OPEN")
        found = frame.ops[0][1]
        demand(found.ref == ref and found.epoch == frame.epoch, "OPEN")
        return found

    def commits(self, checkpoint):
        """All commits behind the checkpoint, judged."""
        path = [self.opening(self.body["log"])]
        demand(path[0].epoch == self.body["log_epoch"], "log epoch")
        while path[0].ref != checkpoint.next.ref:
            earlier = self.opening(path[0].cut.ref)
            demand(earlier.epoch < path[0].epoch and len(path) < 65536, "log epochs")
            path.insert(0, earlier)
        chain, ends = [], []
        seq, head, at = checkpoint.as_of, checkpoint.head, checkpoint.next
        durable = max(self.body["durable"], seq)
        i = 0
        while i < len(path):
            cut = path[i + 1] if i + 1 < len(path) else None
            rolled = None
            while cut is None or at.offset < cut.cut.offset:
                frame = self.frame(at)
                if not frame:
                    demand(cut is None, "a commit below a cut is gone")
                    self.torn |= frame is False
                    ends.append(at)
                    break
                fits = frame.seq == seq + 1 and frame.before == head and frame.epoch == path[i].epoch
                demand(fits and frame.durable < frame.seq, "a commit does not continue the chain")
                chain.append((frame, path[i]))
                seq, head, durable = frame.seq, frame.head, max(durable, frame.durable)
                at = at._replace(offset=at.offset + frame.length)
                if cut is None and frame.ops and frame.ops[0][0] == "roll":
                    rolled = frame.ops[0][1]
                    break
            if cut is not None:
                demand(at == cut.cut and head == cut.cut_head, "a cut is not where the chain is")
            if rolled is not None:
                begin = Place(rolled, BEGIN)
                if self.frame(begin):
                    following = self.opening(rolled)
                    fits = following.epoch > path[i].epoch and following.cut == at and following.cut_head == head
                    demand(fits, "rolled log segment")
                    path.append(following)
                else:
                    ends += [at, begin]
            i += 1
            if i < len(path):
                at = Place(path[i].ref, BEGIN)
        for end in ends:
            durable = max(durable, self.highest_behind(end))
        demand(seq >= durable, f"commits to {durable} were durable and are gone")
        for n, (frame, opened) in enumerate(chain):
            if frame.seq > durable and not self.inline_opens(frame, opened.number):
                self.torn = True
                return chain[:n]
        return chain

    def highest_behind(self, place):
        """The highest durable seq of frames behind the end that open on their own."""
        highest, piece = 0, 1 << 20
        for begin in range(place.offset, self.store.len(LOG, place.ref), piece):
            # Most of it is zeros, in which no frame begins.
            raw = self.store.read(LOG, place.ref, begin, piece)
            for at in range(0, piece, self.body["alignment"]):
                if raw.startswith(b"encfs1fr", at):
                    frame = self.frame(place._replace(offset=begin + at))
                    highest = max(highest, frame.durable if frame else 0)
        return highest

    def inline_opens(self, frame, number):
        for op in frame.ops:
            for extent in extents_of(op):
                if extent.segment == number and frame.inline_at <= extent.offset < frame.inline_at + frame.inline:
                    try:
                        read_extent(self.store, self.keys, LOG, frame.place.ref, extent)
                    except Refused:
                        return False
        return True


def extents_of(op):
    found = {"write": lambda: op[5], "move": lambda: op[3:5], "set_xattr": lambda: op[3][2] if op[3][0] else []}
    return found.get(op[0], list)()


def operation(r):
    """One operation: its name, then its fields."""
    code = r.u8()

    def entry():
        return r.u64(), r.name()

    def opened():
        epoch, _mount, number = r.u64(), r.bytes(16), r.u32()
        return Open(epoch, number, r.ref(), r.place(), r.bytes(32))

    def checkpoint():
        as_of, head, behind, root, level = r.u64(), r.bytes(32), r.place(), pointer(r), r.u8()
        nodes = r.many(lambda: (r.u32(), r.ref(), r.u64()))
        counters = {"next_ino": r.u64(), "next_segment": r.u32(), "files": r.u64(), "live": r.u64(), "unwritten": r.u64()}
        r.many(lambda: (r.u64(), r.bytes(32)))
        return Checkpoint(as_of, head, behind, root, level, nodes, counters)

    def create():
        at, ino, kind, perm = entry(), r.u64(), r.u8(), r.u16()
        user, group, device, time, target = r.u32(), r.u32(), r.u32(), r.time(), r.bytes(r.u16())
        demand(kind in KINDS and perm <= 0o7777 and len(target) <= 4095, "Create")
        demand((kind == LINK) == bool(target), "Create: target")
        return at, ino, (kind, perm, user, group, device, time), target

    def rename():
        old, new, mode = entry(), entry(), r.u8()
        demand(mode <= 2, "Rename")
        return old, new, mode, r.u64() if mode == 2 else None, r.time()

    def set_attr():
        ino, bits = r.u64(), r.u8()
        demand(bits < 64, "SetAttr")
        takes = [("perm", r.u16), ("user", r.u32), ("group", r.u32), ("access", r.time), ("modified", r.time), ("changed", r.time)]
        return ino, {name: take() for i, (name, take) in enumerate(takes) if bits & 1 << i}

    def value():
        if r.flag():
            return True, r.u64(), r.many(r.extent)
        inline = r.bytes(r.u16())
        demand(len(inline) <= 1024, "SetXattr")
        return False, inline, []

    def inline():
        ino, data = r.u64(), r.bytes(r.u16())
        demand(len(data) <= 2048, "Inline")
        return ino, data, r.u64(), r.maybe_time(), r.flag()

    def seg_new():
        number, kind = r.u32(), r.u8()
        demand(kind in LETTERS, "SegNew")
        return number, kind, r.ref()

    table = {
        1: ("open", lambda: (opened(),)),
        2: ("roll", lambda: (r.ref(),)),
        3: ("checkpoint", lambda: (checkpoint(),)),
        4: ("seg_new", seg_new),
        5: ("seg_drop", lambda: (r.u32(),)),
        16: ("create", create),
        17: ("link", lambda: (r.u64(), entry(), r.time())),
        18: ("unlink", lambda: (entry(), r.time())),
        19: ("rename", rename),
        20: ("set_attr", set_attr),
        21: ("write", lambda: (r.u64(), r.u64(), r.maybe_time(), r.flag(), r.many(r.extent))),
        22: ("truncate", lambda: (r.u64(), r.u64(), r.maybe_time())),
        23: ("punch", lambda: (r.u64(), r.u64(), r.u64(), r.time())),
        24: ("move", lambda: (r.u64(), r.u64(), r.extent(), r.extent())),
        25: ("trim", lambda: (r.u64(), r.u64(), r.u32())),
        26: ("reap", lambda: (r.u64(), r.u32())),
        27: ("set_xattr", lambda: (r.u64(), r.attribute(), value(), r.time())),
        28: ("remove_xattr", lambda: (r.u64(), r.attribute(), r.time())),
        29: ("inline", inline),
        30: ("allocate", lambda: (r.u64(), r.u64(), r.u64())),
        31: ("share", lambda: (r.u64(), r.u64(), r.u64(), r.u64(), r.u64(), r.time())),
    }
    demand(code in table, f"operation {code}")
    name, take = table[code]
    return (name, *take())
