#!/usr/bin/env python3
"""Writes server_frames.txt: frames and payloads of docs/server-protocol.md, made from that text alone.

  pip install xxhash; python3 make_server_frames.py > server_frames.txt
"""

import hashlib
import hmac
import struct

import xxhash

KEY = bytes(range(32))


def frame(kind, dtype, sequence, call, rank, count, begin, end, wanted, payload, role):
    header = b"LSPS" + struct.pack(
        "<BBBBQQIIQQQQQQ", 3, kind, dtype, 0, sequence, call, rank, len(payload), count, begin, end, *wanted,
        xxhash.xxh3_128_intdigest(payload) & (2**64 - 1))
    assert len(header) == 80
    return header + hmac.new(KEY, role + header, hashlib.sha256).digest()[:16] + payload


FRAMES = {
    "push": frame(3, 1, 3, 7, 1, 6, 2, 4, (2, 4), struct.pack("<2f", 1.0, -2.5), b"worker"),
    "hello": struct.pack("<7IQQB", 1, 4, 0, 2, 60000, 5000, 0, 0, 77, 1) + b"host a, process 7",
    "welcome": struct.pack("<2IQ", 1, 4, 99),
    "who": struct.pack("<I", 1500) + b"barrier",
    "memory": struct.pack("<2Q2I", 3, 4096, 77, 9) + bytes(range(32)),
    "memory_use": struct.pack("<QI", 3, 1),
    "place": struct.pack("<2Q", 3, 8),
    "open": struct.pack("<3Q3I", 7, 1000, 200, 4, 1, 0) + b"lr 1",
    "opened": struct.pack("<4I2Q", 1, 0, 1, 0, 12, 6),
    "start": struct.pack("<Q", 6),
    "pull": struct.pack("<Q2I", 6, 1, 0),
    "wish": struct.pack("<I", 1),
    "pulled": struct.pack("<Q3I4Q", 13, 0, 0, 1, 13, 9, 2, 0),
    "gradient": struct.pack("<2Qf", 6, 13, 2.0),
    "applied": struct.pack("<2Q", 6, 1),
    "waiting": struct.pack("<IQ", 1, 2),
    "values": frame(19, 1, 4, 1, 0, 6, 2, 4, (0, 0), struct.pack("<2f", 1.0, -2.5), b"server"),
    "fail": struct.pack("<B", 2) + b"rank 1 is gone",
}

for name, data in FRAMES.items():
    print(name, data.hex())
