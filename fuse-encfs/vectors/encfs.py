"""Prints the vectors of the encrypted volume, version 0.

From RFC 5869 (HKDF), NIST SP 800-38D (GCM, by the `cryptography` package), FIPS 180-4 and the
SipHash paper alone; shares no code with the implementation. Needs `pip install cryptography`.
"""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LABEL = b"enclaveid/encfs/v0/"


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


volume, kek, vmk = bytes(range(16)), bytes([0x11] * 32), bytes([0x22] * 32)
uid, salt, genesis = bytes([0x33] * 16), bytes([0x44] * 8), bytes([0x55] * 32)
epoch = struct.pack("<I", 0)

print("kek commitment", expand(kek, LABEL + b"kek-commitment/" + volume + epoch).hex())
data = expand(vmk, LABEL + b"data")
print("K_data        ", data.hex())
segment = expand(data, LABEL + b"segment/" + uid + epoch)
nonce = struct.pack(">I", 4096 // 16) + salt
aad = b"encfs0un" + bytes([1, 1, 0, 0]) + volume + uid + struct.pack("<QI", 4096, 64)
chunk = b"hello".ljust(64, b"\0")
print("segment key   ", segment.hex())
print("nonce         ", nonce.hex())
print("AAD           ", aad.hex())
print("chunk         ", AESGCM(segment).encrypt(nonce, chunk, aad).hex())
vmk_commitment = expand(vmk, LABEL + b"vmk-commitment")
head = hashlib.sha256(LABEL + b"head/genesis/" + volume + genesis + vmk_commitment).digest()
print("head 0        ", head.hex())
sealed = bytes([0x66] * 448)
link = struct.pack("<QQ", 1, 1) + uid + struct.pack("<QQ", 4096, len(sealed))
head = hashlib.sha256(LABEL + b"head/next/" + head + link + hashlib.sha256(sealed).digest()).digest()
print("head 1        ", head.hex())
names = expand(expand(vmk, LABEL + b"dirhash"), LABEL + b"names", 16)
print("hash of a name", f"{siphash(names, b'name'):016x}")
once = expand(vmk, LABEL + b"once-commit/" + bytes([0x77] * 32))
print("sealed once   ", (bytes([0x77] * 32) + AESGCM(once).encrypt(bytes(12), chunk, bytes(range(120)))).hex())
