#!/usr/bin/env python3
"""Prints the golden vectors of the derivation tree, from RFC 5869 and docs/format.md alone."""
import hashlib
import hmac


def extract(salt, ikm):
    return hmac.new(salt, ikm, hashlib.sha256).digest()


def expand(prk, info, length):
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        out, counter = out + block, counter + 1
    return out[:length]


master = bytes(range(32))
intermediate = expand(extract(b"enclaveid/v1/extract", master), b"enclaveid/v1/intermediate", 32)
print("intermediate", intermediate.hex())
for generation in (0, 1):
    info = b"enclaveid/mesh-ca/v1/seed/" + generation.to_bytes(4, "big")
    print("ca", generation, expand(intermediate, info, 48).hex())
for epoch in (0, 1):
    info = b"enclaveid/encfs/v1/kek/" + b"\x11" * 16 + epoch.to_bytes(4, "big")
    print("kek", epoch, expand(intermediate, info, 32).hex())
