#!/usr/bin/env python3
"""Makes ggml_blocks.safetensors: values, and what llama.cpp's own Python package makes of them.

    python3 -m venv venv && venv/bin/pip install gguf numpy safetensors
    venv/bin/python tests/golden/formats/make_ggml_blocks.py

Made with gguf 0.19.0 and numpy 2.4.6. It holds

    values [8, 256] f32       normal numbers of several sizes, one row of zeros, one of few different values
    T.bytes u8                of T = q4_0, q5_0, q8_0, f16, bf16: the values in that type
    T.packed u8, T.values     of T = q4_k, q6_k: blocks of random bits (with scales that are small numbers), and what they mean
"""

import pathlib

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).parent
random = np.random.default_rng(7)

values = random.standard_normal((8, 256)).astype(np.float32) * np.array([[1], [0.02], [30], [1e-4], [1], [1], [1], [1]], np.float32)
values[4] = 0
values[5] = np.round(values[5] * 2) / 4
values[6, 3] = 100
out = {"values": values}
for name in ("q4_0", "q5_0", "q8_0", "f16", "bf16"):
    out[f"{name}.bytes"] = np.ascontiguousarray(quantize(values, getattr(Type, name.upper()))).view(np.uint8).reshape(-1)


def scales(count):
    return (random.standard_normal(count) * 0.01).astype(np.float16).view(np.uint8).reshape(count, 2)


q4_k = random.integers(0, 256, (6, 144), np.uint8)
q4_k[:, 0:2] = scales(6)
q4_k[:, 2:4] = scales(6)
q6_k = random.integers(0, 256, (6, 210), np.uint8)
q6_k[:, 208:210] = scales(6)
for name, blocks in (("q4_k", q4_k), ("q6_k", q6_k)):
    out[f"{name}.packed"] = blocks.reshape(-1)
    out[f"{name}.values"] = dequantize(blocks, getattr(Type, name.upper())).astype(np.float32).reshape(-1)
save_file(out, FOLDER / "ggml_blocks.safetensors")
print({name: array.shape for name, array in out.items()})
