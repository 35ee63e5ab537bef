"""Keys, sealed bytes, the store that holds them, and the superblock."""

import hashlib
import hmac
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .fields import DATA, LETTERS, LOG, NODE, Fields, Refused, demand

LABEL = b"enclaveid/encfs/v1/"


def expand(prk, info, length=32):
    out, block, i = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:length]


def u32(n):
    return struct.pack("<I", n)


def u64(n):
    return struct.pack("<Q", n)


def ref_bytes(ref):
    return ref.uid + u32(ref.epoch)


def decrypt(key, nonce, sealed, aad, what):
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Refused(f"{what}: does not open") from None


def open_once(parent, label, sealed, aad, what):
    demand(len(sealed) >= 48, f"{what}: too short")
    return decrypt(expand(parent, LABEL + label + sealed[:32]), bytes(12), sealed[32:], aad, what)


def siphash(key, data):
    """SipHash-2-4."""
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    a, b, c, d = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573

    def turn(x, n):
        return ((x << n) | (x >> (64 - n))) & mask

    def rounds(a, b, c, d, n):
        for _ in range(n):
            a, c = (a + b) & mask, (c + d) & mask
            b, d = turn(b, 13) ^ a, turn(d, 16) ^ c
            a = turn(a, 32)
            c, a = (c + b) & mask, (a + d) & mask
            b, d = turn(b, 17) ^ c, turn(d, 21) ^ a
            c = turn(c, 32)
        return a, b, c, d

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        a, b, c, d = rounds(a, b, c, d ^ word, 2)
        a ^= word
    a, b, c, d = rounds(a, b, c ^ 0xFF, d, 4)
    return a ^ b ^ c ^ d


class Keys:
    def __init__(self, volume, vmks):
        self.volume, self.vmks = volume, vmks

    def of(self, epoch, label):
        demand(epoch in self.vmks, f"no master key of epoch {epoch}")
        return expand(self.vmks[epoch], LABEL + label)

    def of_kind(self, kind, epoch):
        return self.of(epoch, {DATA: b"data", NODE: b"node", LOG: b"log"}[kind])

    def segment(self, kind, ref):
        return expand(self.of_kind(kind, ref.epoch), LABEL + b"segment/" + ref_bytes(ref))

    def commits(self, ref):
        return expand(self.of(ref.epoch, b"log"), LABEL + b"commits/" + ref_bytes(ref))

    def aad(self, unit, ref, offset, length):
        return b"encfs1un" + bytes([unit, 1, 0, 0]) + self.volume + ref.uid + u64(offset) + u32(length)

    def unit(self, kind, ref, offset, length, salt, sealed, what):
        """Opens a chunk, a node, or an inline chunk, by the kind of its segment."""
        unit = {DATA: 1, NODE: 2, LOG: 3}[kind]
        nonce = struct.pack(">I", offset // 16) + salt
        return decrypt(self.segment(kind, ref), nonce, sealed, self.aad(unit, ref, offset, length), what)


class Store:
    """A store that is a directory."""

    def __init__(self, root):
        self.root = root

    def whole(self, name):
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def len(self, kind, ref):
        path = self.root / (LETTERS[kind] + ref.uid.hex())
        demand(path.is_file(), f"{path.name}: absent")
        return path.stat().st_size

    def read(self, kind, ref, offset, n):
        """Bytes of a segment; what is behind its end is zeros."""
        self.len(kind, ref)
        with open(self.root / (LETTERS[kind] + ref.uid.hex()), "rb") as f:
            f.seek(offset)
            return f.read(n).ljust(n, b"\0")


def read_extent(store, keys, kind, ref, extent):
    plain = bytearray()
    for offset, length in extent.chunks():
        sealed = store.read(kind, ref, offset, length + 16)
        plain += keys.unit(kind, ref, offset, length, extent.salt, sealed, "chunk")
    return bytes(plain[extent.head : extent.head + extent.live])


def open_slot(raw, kek, expected, slot):
    """Keys and body of a slot."""
    demand(len(raw) == 1652, "length")
    r = Fields(raw[:1368], "superblock")
    demand(r.bytes(8) == b"encfs1sb" and r.u32() == 1 and r.u32() == 1368, "no superblock of version 1")
    features = [r.u64() for _ in range(3)]
    volume, kek_epoch, epoch = r.bytes(16), r.u32(), r.u32()
    demand(expected in (None, volume), "another volume")
    kek_commitment, vmk_commitment, wrapped = r.bytes(32), r.bytes(32), r.bytes(80)
    has, older_epoch, older = r.u32(), r.u32(), r.bytes(80)
    demand(has <= 3, "unknown parts")
    if not has & 1:
        demand(not older_epoch and not any(older), "an older key")
    owner_len, encrypted_len = r.u16(), r.u16()
    r.zeros(4)
    owner, encrypted = r.bytes(552), r.bytes(512)
    bounds = (1 <= owner_len <= 552 and 1 <= encrypted_len <= 512) if has & 2 else owner_len + encrypted_len == 0
    demand(bounds and not any(owner[owner_len:] + encrypted[encrypted_len:]), "recovery wrap")
    r.end()

    commitment = expand(kek, LABEL + b"kek-commitment/" + volume + u32(kek_epoch))
    demand(commitment == kek_commitment, "another key")
    vmk = open_once(kek, b"vmk-wrap/", wrapped, volume + u32(kek_epoch) + u32(epoch), "wrapped master key")
    commitment = expand(vmk, LABEL + b"vmk-commitment/" + volume + u32(epoch))
    demand(commitment == vmk_commitment, "master key")
    vmks = {epoch: vmk}
    if has & 1:
        demand(older_epoch < epoch, "older epoch")
        aad = volume + u32(epoch) + u32(older_epoch)
        vmks[older_epoch] = open_once(vmk, b"older-vmk-wrap/", older, aad, "older master key")
    keys = Keys(volume, vmks)
    body = open_once(keys.of(epoch, b"superblock"), b"once-superblock/", raw[1368:], raw[:1368], "body")

    b = Fields(body, "body")
    fields = {"generation": b.u64(), "genesis": b.bytes(32)}
    fields["newest"] = (b.place(), b.u64())
    fields["previous"] = (b.place(), b.u64())
    fields["log"], fields["log_epoch"], fields["durable"] = b.ref(), b.u64(), b.u64()
    fields["lowest_epoch"], fields["anchored"] = b.u32(), b.flag()
    b.zeros(1)
    fields["alignment"], fields["label"], fields["name_key"] = b.u16(), b.bytes(64), b.bytes(16)
    b.end()
    demand(fields["generation"] % 2 == slot and fields["alignment"] in (512, 4096), "body")
    demand(fields["lowest_epoch"] <= min(vmks), "keys that are no longer in use")
    demand(features[1:] == [0, 0], "unknown features")
    return keys, fields


def open_superblock(store, kek, expected):
    good, bad = [], []
    for slot in (0, 1):
        raw = store.whole(f"s{slot}")
        try:
            demand(raw is not None, "absent")
            good.append(open_slot(raw, kek, expected, slot))
        except Refused as e:
            bad.append(f"slot {slot}: {e}")
    demand(good, "; ".join(bad))
    generations = {body["generation"] for _, body in good}
    demand(len(generations) == len(good), "two slots of one generation")
    return max(good, key=lambda slot: slot[1]["generation"])
