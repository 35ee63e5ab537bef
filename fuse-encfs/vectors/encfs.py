"""Prints the vectors of the encrypted volume, version 1, as `vectors/encfs.txt` has them.

From RFC 5869 (HKDF), NIST SP 800-38D (GCM, by the `cryptography` package), FIPS 180-4 and the
SipHash paper alone; shares no code with the implementation. Needs `pip install cryptography`.
"""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LABEL = b"enclaveid/encfs/v1/"


def expand(prk: bytes, info: bytes, length: int = 32) -> bytes:
    out, block, i = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:length]


def siphash(key: bytes, data: bytes) -> int:
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x, n):
        return ((x << n) | (x >> (64 - n))) & mask

    def rounds(n):
        for _ in range(n):
            v[0] = (v[0] + v[1]) & mask
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) & mask
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & mask
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & mask
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def once(parent: bytes, label: bytes, salt: bytes, aad: bytes, plaintext: bytes) -> bytes:
    key = expand(parent, LABEL + label + salt)
    return salt + AESGCM(key).encrypt(bytes(12), plaintext, aad)


def show(name: str, value: bytes) -> None:
    print(f"{name}: {value.hex()}")


def u32(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


volume, kek = bytes(range(16)), bytes([0x11] * 32)
older_vmk, vmk = bytes([0x21] * 32), bytes([0x22] * 32)
kek_epoch, older_epoch, vmk_epoch = 7, 4, 5
uid, salt, genesis, name_key = bytes([0x33] * 16), bytes([0x44] * 8), bytes([0x55] * 32), bytes(range(16))
ref = uid + u32(vmk_epoch)

# Keys of the superblock.
kek_commitment = expand(kek, LABEL + b"kek-commitment/" + volume + u32(kek_epoch))
vmk_commitment = expand(vmk, LABEL + b"vmk-commitment/" + volume + u32(vmk_epoch))
wrap = once(kek, b"vmk-wrap/", bytes([0x66] * 32), volume + u32(kek_epoch, vmk_epoch), vmk)
older = once(vmk, b"older-vmk-wrap/", bytes([0x67] * 32), volume + u32(vmk_epoch, older_epoch), older_vmk)
show("kek commitment", kek_commitment)
show("vmk commitment", vmk_commitment)
show("wrapped vmk", wrap)
show("wrapped older vmk", older)

# A unit.
data = expand(vmk, LABEL + b"data")
segment = expand(data, LABEL + b"segment/" + ref)
nonce = struct.pack(">I", 4096 // 16) + salt
aad = b"encfs1un" + bytes([1, 1, 0, 0]) + volume + uid + u64(4096) + u32(64)
chunk = b"hello".ljust(64, b"\0")
show("K_data", data)
show("segment key", segment)
show("nonce", nonce)
show("AAD", aad)
show("chunk", AESGCM(segment).encrypt(nonce, chunk, aad))

# The chain.
commitment = expand(vmk, LABEL + b"genesis-commitment")
head = hashlib.sha256(LABEL + b"head/genesis/" + volume + genesis + commitment).digest()
show("head 0", head)
sealed = bytes([0x66] * 448)
link = u64(1, 1) + uid + u64(4096, len(sealed))
head = hashlib.sha256(LABEL + b"head/next/" + head + link + hashlib.sha256(sealed).digest()).digest()
show("head 1", head)
commits = expand(expand(vmk, LABEL + b"log"), LABEL + b"commits/" + ref)
frame_head = bytes(range(64))
aad = b"encfs1un" + bytes([4, 1, 0, 0]) + volume + uid + u64(4096) + u32(64) + frame_head
show("commit", once(commits, b"once-commit/", bytes([0x77] * 32), aad, chunk))
show("hash of a name", struct.pack(">Q", siphash(name_key, b"name")))

# The header of a segment.
clear = b"encfs1sg" + u32(1) + bytes([1, 0, 0, 0]) + volume + ref + u32(9) + bytes(8)
body = struct.pack("<q", 1_700_000_000).ljust(4096 - 64 - 48, b"\0")
header = clear + once(data, b"once-segment-header/", bytes([0x78] * 32), clear, body)
show("segment header", header)

# The tag of a record that an anchor keeps.
anchor = expand(vmk, LABEL + b"anchor")
show("anchor tag", expand(anchor, LABEL + b"tag-anchor-record/" + bytes(range(80))))

# A superblock in slot 1, of a volume that is being re-encrypted and has an owner.
owner, encrypted = bytes([0x30] * 422), bytes([0x7A] * 384)
clear = b"encfs1sb" + u32(1, 1368) + u64(1, 0, 0) + volume + u32(kek_epoch, vmk_epoch)
clear += kek_commitment + vmk_commitment + wrap + u32(3, older_epoch) + older
clear += struct.pack("<HHI", len(owner), len(encrypted), 0) + owner.ljust(552, b"\0") + encrypted.ljust(512, b"\0")
newest, previous = ref + u64(8192, 20), ref + u64(4608, 10)
body = u64(41) + genesis + newest + previous + ref + u64(3, 22) + u32(older_epoch)
body += bytes([1, 0]) + struct.pack("<H", 4096) + b"label".ljust(64, b"\0") + name_key
parent = expand(vmk, LABEL + b"superblock")
show("superblock", clear + once(parent, b"once-superblock/", bytes([0x7B] * 32), clear, body))
