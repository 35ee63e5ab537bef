"""What a volume holds, and what operations do to it."""

import bisect

from .fields import CHAR, DIRECTORY, FILE, KINDS, LETTERS, LOG, ROOT, Extent, Fields, Inode, Refused, Unwritten, demand, kept, skipped
from .seal import siphash


class Volume:
    def __init__(self, name_key, counters):
        self.name_key, self.counters = name_key, counters
        self.inodes, self.orphans = {}, set()
        self.entries, self.names, self.hashes = {}, {}, {}
        self.maps, self.attributes = {}, {}
        self.segments, self.live = {}, {}

    def load(self, key, value):
        k, v = Fields(key, "key"), Fields(value, "value")
        what = k.u8()
        if what == 1:
            ino, part = k.be(8), k.u8()
            if part == 0:
                self.inodes[ino] = Inode(v.rest())
            elif part == 1:
                cookie, child, kind = k.be(8), v.u64(), v.u8()
                self.add_item(ino, cookie, (child, kind, v.rest()))
            elif part == 2:
                self.hashes.setdefault((ino, k.be(8)), {})[k.be(2)] = v.u64()
            elif part == 3:
                found = Unwritten(v.u64()) if len(value) == 8 else v.extent()
                demand(found.live > 0, "unwritten")
                self.map(ino).load(k.be(8), found)
            elif part == 4:
                is_map = v.flag()
                found = (True, v.u64(), v.u32()) if is_map else (False, v.rest(), None)
                self.attributes.setdefault(ino, {})[k.rest()] = found
            else:
                raise Refused("key")
        elif what == 2:
            number, kind = k.be(4), v.u8()
            demand(kind in LETTERS, "segment")
            self.segments[number] = [kind, v.ref(), v.u64()]
        elif what == 3:
            self.live[k.be(4), k.be(8)] = v.u64()
        elif what == 4:
            self.orphans.add(k.be(8))
        else:
            raise Refused("key")
        k.end()
        v.end()

    def add_item(self, directory, cookie, item):
        r = Fields(bytes([len(item[2]) & 0xFF]) + item[2], "entry")
        demand(len(item[2]) <= 255 and r.name() and item[1] in KINDS, "entry")
        self.entries.setdefault(directory, {})[cookie] = item
        self.names.setdefault(directory, {})[item[2]] = cookie

    def map(self, number):
        if number not in self.maps:
            self.maps[number] = FileMap(self, number)
        return self.maps[number]

    def inode(self, ino):
        demand(ino in self.inodes, f"inode {ino} is missing")
        return self.inodes[ino]

    def file(self, ino):
        demand(self.inode(ino).kind == FILE, f"inode {ino} is no file")
        return self.inodes[ino], self.map(ino)

    def take_number(self, number):
        demand(number >= self.counters["next_ino"], "a number is used twice")
        self.counters["next_ino"] = number + 1

    def find(self, at):
        cookie = self.names.get(at[0], {}).get(at[1])
        demand(cookie is not None, "a name is missing")
        return cookie, self.entries[at[0]][cookie]

    def add_name(self, at, ino, kind, time, cookie=None):
        directory = self.inode(at[0])
        demand(directory.kind == DIRECTORY and at[1] not in self.names.get(at[0], {}), "a name is taken")
        if cookie is None:
            cookie = max(directory.cookie, 3)
            directory.cookie = cookie + 1
        directory.stamp(time)
        self.add_item(at[0], cookie, (ino, kind, at[1]))
        same = self.hashes.setdefault((at[0], siphash(self.name_key, at[1])), {})
        same[next(n for n in range(65536) if n not in same)] = cookie

    def remove_name(self, at, time):
        cookie, item = self.find(at)
        del self.entries[at[0]][cookie], self.names[at[0]][at[1]]
        place = at[0], siphash(self.name_key, at[1])
        n = next((n for n, c in self.hashes.get(place, {}).items() if c == cookie), None)
        demand(n is not None, "the hash of a name is missing")
        del self.hashes[place][n]
        self.inode(at[0]).stamp(time)
        return item

    def lose(self, parent, item, time):
        ino = self.inode(item[0])
        ino.changed = time
        if item[1] == DIRECTORY:
            demand(not self.entries.get(item[0]), "a directory that is not empty is removed")
            self.inode(parent).names -= 1
            ino.names = 0
        else:
            ino.names -= 1
        if ino.names == 0:
            self.orphans.add(item[0])

    def moved(self, item, old, new, time):
        ino = self.inode(item[0])
        ino.changed = time
        if item[1] == DIRECTORY and old != new:
            self.inode(old).names -= 1
            self.inode(new).names += 1
            ino.parent = new

    def apply(self, op):
        getattr(self, "do_" + op[0])(*op[1:])

    def do_roll(self, _):
        pass

    def do_checkpoint(self, _):
        pass

    def do_open(self, opened):
        if self.segments.get(opened.number, [None, None])[:2] != [LOG, opened.ref]:
            self.do_seg_new(opened.number, LOG, opened.ref)

    def do_seg_new(self, number, kind, ref):
        demand(number not in self.segments, "a segment number is used twice")
        self.segments[number] = [kind, ref, 0]
        self.counters["next_segment"] = max(self.counters["next_segment"], number + 1)

    def do_seg_drop(self, number):
        demand(self.segments.get(number, [0, 0, 1])[2] == 0, "a segment is dropped that is in use")
        del self.segments[number]

    def do_create(self, at, ino, what, target):
        self.take_number(ino)
        self.counters["files"] += 1
        self.inodes[ino] = Inode.new(*what, at[0], target)
        if what[0] == DIRECTORY:
            self.inode(at[0]).names += 1
        self.add_name(at, ino, what[0], what[5])

    def do_link(self, ino, at, time):
        inode = self.inode(ino)
        demand(inode.kind != DIRECTORY and inode.names, "a link to what cannot have one")
        inode.changed, inode.names = time, inode.names + 1
        self.add_name(at, ino, inode.kind, time)

    def do_unlink(self, at, time):
        self.lose(at[0], self.remove_name(at, time), time)

    def do_rename(self, old, new, mode, whiteout, time):
        if mode == 1:
            (a, at_a), (b, at_b) = self.find(old), self.find(new)
            self.entries[old[0]][a] = (*at_b[:2], at_a[2])
            self.entries[new[0]][b] = (*at_a[:2], at_b[2])
            self.inode(old[0]).stamp(time)
            self.inode(new[0]).stamp(time)
            self.moved(at_a, old[0], new[0], time)
            self.moved(at_b, new[0], old[0], time)
            return
        cookie = self.find(old)[0] if old[0] == new[0] else None
        item = self.remove_name(old, time)
        if new[1] in self.names.get(new[0], {}):
            self.lose(new[0], self.remove_name(new, time), time)
        self.add_name(new, item[0], item[1], time, cookie)
        self.moved(item, old[0], new[0], time)
        if mode == 2:
            self.do_create(old, whiteout, (CHAR, 0, 0, 0, 0, time), b"")

    def do_set_attr(self, ino, changes):
        demand(changes.get("perm", 0) <= 0o7777, "SetAttr")
        vars(self.inode(ino)).update(changes)

    def do_write(self, ino, start, time, kills, extents):
        inode, held = self.file(ino)
        for extent in extents:
            held.place(start, extent)
            start += extent.live
        inode.inline, inode.size = b"", max(inode.size, start)
        inode.written(time, kills)

    def do_truncate(self, ino, size, time):
        inode, held = self.file(ino)
        held.punch(size, 1 << 64)
        inode.inline, inode.size = inode.inline[:size], size
        inode.written(time, False)

    def do_punch(self, ino, start, end, time):
        inode, held = self.file(ino)
        held.punch(start, end)
        low, high = min(start, len(inode.inline)), min(end, len(inode.inline))
        if low < high:
            inode.inline = inode.inline[:low] + bytes(high - low) + inode.inline[high:]
        inode.stamp(time)

    def do_inline(self, ino, data, size, time, kills):
        inode, held = self.file(ino)
        held.punch(0, 1 << 64)
        inode.inline, inode.size = data, size
        inode.written(time, kills)

    def do_allocate(self, ino, start, end):
        _, held = self.file(ino)
        for at, value in held.overlapping(start, end):
            if at > start:
                held.put(start, Unwritten(at - start))
            start = at + value.live
        if start < end:
            held.put(start, Unwritten(end - start))

    def do_share(self, source, source_start, target, target_start, length, time):
        inode, held = self.file(target)
        end = source_start + length
        found = self.map(source).overlapping(source_start, end)
        held.punch(target_start, target_start + length)
        for at, value in found:
            skip = max(source_start - at, 0)
            piece = kept(skipped(value, skip) if skip else value, end - at - skip)
            if isinstance(piece, Extent):
                held.place(target_start + at + skip - source_start, piece)
        inode.size = max(inode.size, target_start + length)
        inode.stamp(time)

    def do_move(self, number, start, old, new):
        demand(old.live == new.live, "a move changes a length")
        held = self.map(number)
        for at, value in held.overlapping(start, start + old.live):
            skip = at - start
            if skip >= 0 and value == kept(old.skip(skip), value.live):
                held.take(at)
                held.put(at, kept(new.skip(skip), value.live))
                held.join_before(at)

    def do_trim(self, ino, start, limit):
        self.file(ino)[1].trim(start, limit)

    def do_reap(self, ino, limit):
        demand(ino in self.orphans, "an inode with a name is reaped")
        held = self.map(ino)
        held.trim(0, limit)
        if held.starts:
            return
        for name in list(self.attributes.get(ino, {})):
            self.drop_attribute(ino, name)
        del self.inodes[ino]
        self.orphans.discard(ino)
        self.counters["files"] -= 1

    def do_set_xattr(self, ino, name, value, time):
        inode = self.inode(ino)
        if name in self.attributes.get(ino, {}):
            self.drop_attribute(ino, name)
        else:
            inode.attributes += 1
        is_map, what, extents = value
        if is_map:
            self.take_number(what)
            end = 0
            for extent in extents:
                self.map(what).place(end, extent)
                end += extent.live
            value = True, what, end
        self.attributes.setdefault(ino, {})[name] = value
        inode.changed = time

    def do_remove_xattr(self, ino, name, time):
        self.drop_attribute(ino, name)
        inode = self.inode(ino)
        inode.attributes, inode.changed = inode.attributes - 1, time

    def drop_attribute(self, ino, name):
        demand(name in self.attributes.get(ino, {}), "an extended attribute is missing")
        is_map, what, _ = self.attributes[ino].pop(name)
        if is_map:
            self.map(what).punch(0, 1 << 64)

    def check(self):
        """What must hold between the items."""
        values = {v[1]: v[2] for of in self.attributes.values() for v in of.values() if v[0]}
        live, unwritten = {}, 0
        for number, held in self.maps.items():
            end = covered = data_end = 0
            for start in held.starts:
                value = held.values[start]
                demand(start >= end, "extents overlap")
                end, covered = start + value.live, covered + value.live
                if isinstance(value, Unwritten):
                    unwritten += value.live
                else:
                    data_end = end
                    live[value.segment, number] = live.get((value.segment, number), 0) + value.live
            if number in self.inodes:
                inode = self.inodes[number]
                fits = inode.covered == covered and data_end <= inode.size
                demand(fits and (inode.kind == FILE or not covered), f"the map of inode {number}")
            else:
                demand(values.get(number, 0) == covered == end, "the map of an attribute")
        demand(all(i.covered == 0 or n in self.maps for n, i in self.inodes.items()), "covered bytes")
        demand(live == {k: v for k, v in self.live.items() if v}, "live bytes by map")
        by_segment = {}
        for (segment, _), n in live.items():
            by_segment[segment] = by_segment.get(segment, 0) + n
        demand(all(s[2] == by_segment.get(n, 0) for n, s in self.segments.items()), "live bytes of a segment")
        demand(set(by_segment) <= set(self.segments), "an extent in an unknown segment")
        counted = self.counters["files"], self.counters["live"], self.counters["unwritten"]
        demand(counted == (len(self.inodes), sum(live.values()), unwritten), "counters")
        self.check_names()

    def check_names(self):
        names = {ROOT: 2}
        for directory, items in self.entries.items():
            demand(not items or self.inode(directory).kind == DIRECTORY, "entries of no directory")
            for cookie, (ino, kind, name) in items.items():
                demand(self.inode(ino).kind == kind, "an entry of another kind")
                demand(3 <= cookie < self.inode(directory).cookie, "cookie")
                if kind == DIRECTORY:
                    demand(self.inode(ino).parent == directory, "a directory has another parent")
                    names[directory] = names.get(directory, 0) + 1
                    names[ino] = names.get(ino, 0) + 1
                names[ino] = names.get(ino, 0) + 1
                same = self.hashes.get((directory, siphash(self.name_key, name)), {})
                demand(cookie in same.values(), "a name has no hash")
        entries = sum(map(len, self.entries.values()))
        demand(sum(map(len, self.hashes.values())) == entries == sum(map(len, self.names.values())), "names and hashes")
        for number, inode in self.inodes.items():
            demand(inode.names == names.get(number, 0), f"number of names of inode {number}")
            demand((inode.names == 0) == (number in self.orphans), "orphans")
            demand(inode.attributes == len(self.attributes.get(number, {})), "number of attributes")
        demand(max(self.inodes) < self.counters["next_ino"], "next inode")


class FileMap:
    """What a map has, by where it starts."""

    def __init__(self, volume, number):
        self.volume, self.number = volume, number
        self.starts, self.values = [], {}

    def load(self, start, value):
        bisect.insort(self.starts, start)
        self.values[start] = value

    def put(self, start, value):
        demand(value.live > 0 and start not in self.values, "an extent is cut to nothing")
        self.load(start, value)
        self.count(value, value.live)

    def take(self, start):
        self.starts.remove(start)
        value = self.values.pop(start)
        self.count(value, -value.live)

    def count(self, value, n):
        volume, inode = self.volume, self.volume.inodes.get(self.number)
        if inode:
            inode.covered += n
        if isinstance(value, Unwritten):
            volume.counters["unwritten"] += n
            return
        demand(value.segment in volume.segments, "an extent in an unknown segment")
        volume.segments[value.segment][2] += n
        key = value.segment, self.number
        volume.live[key] = volume.live.get(key, 0) + n
        volume.counters["live"] += n

    def overlapping(self, start, end):
        first = max(bisect.bisect_right(self.starts, start) - 1, 0)
        found = []
        for at in self.starts[first:]:
            if at >= end:
                break
            if at + self.values[at].live > start:
                found.append((at, self.values[at]))
        return found

    def punch(self, start, end):
        for at, value in self.overlapping(start, end):
            self.take(at)
            if at < start:
                self.put(at, kept(value, start - at))
            if end < at + value.live:
                self.put(end, skipped(value, end - at))

    def place(self, start, value):
        self.punch(start, start + value.live)
        self.put(start, value)

    def trim(self, start, limit):
        while limit and self.starts and self.starts[-1] >= start:
            self.take(self.starts[-1])
            limit -= 1

    def join_before(self, at):
        i = self.starts.index(at)
        if i == 0:
            return
        before = self.starts[i - 1]
        first, second = self.values[before], self.values[at]
        if not isinstance(first, Extent) or before + first.live != at:
            return
        whole = first._replace(live=first.live + second.live)
        if whole.head + whole.live <= whole.sealed and whole.skip(first.live) == second:
            self.take(at)
            self.take(before)
            self.put(before, whole)
