"""The tree that holds the map."""

from .fields import BEGIN, NODE, SEGMENT_LEN_MAX, Fields, Pointer, demand


def pointer(r):
    p = Pointer(r.u32(), r.u32() * 16, r.u16() * 64, r.bytes(8))
    demand(BEGIN <= p.offset < SEGMENT_LEN_MAX and 64 <= p.length <= 16384, "node pointer")
    return p


def read_node(store, keys, nodes, at):
    demand(at.segment in nodes, "a node in an unknown segment")
    sealed = store.read(NODE, nodes[at.segment], at.offset, at.length + 16)
    return keys.unit(NODE, nodes[at.segment], at.offset, at.length, at.salt, sealed, "node")


def items(store, keys, nodes, at, level, low, high):
    """Keys and values below a node, whose keys must lie in low to high."""
    r = Fields(read_node(store, keys, nodes, at), "node")
    demand(r.u8() == level, "node: level")
    r.zeros(1)
    count, length = r.u16(), r.u32()
    body = Fields(r.bytes(length), "node")
    r.zeros()
    entries = []
    for _ in range(count):
        key_len, value_len = body.u16(), body.u16()
        entries.append((body.bytes(key_len), body.bytes(value_len)))
    body.end()
    ascending = all(a[0] < b[0] for a, b in zip(entries, entries[1:]))
    demand(ascending and (entries or (low is None and level == 0)), "node: order")
    inside = not entries or ((low is None or low <= entries[0][0]) and (high is None or entries[-1][0] < high))
    demand(inside, "node: keys of another one")
    for i, (key, value) in enumerate(entries):
        if level == 0:
            yield key, value
            continue
        p = Fields(value, "node pointer")
        child = pointer(p)
        p.end()
        following = entries[i + 1][0] if i + 1 < len(entries) else high
        yield from items(store, keys, nodes, child, level - 1, key, following)
