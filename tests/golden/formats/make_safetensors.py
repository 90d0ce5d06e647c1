"""Makes the safetensors files of this folder with Hugging Face's own writer (pip install safetensors numpy).

    python3 make_safetensors.py

Values are chosen so that the test can state them exactly: element i of a tensor of integers is i + 1, floats are below.
Made with safetensors 0.8.0, numpy 2.4.6.
"""

import json
import pathlib
import struct

import numpy
import safetensors
import safetensors.numpy

HERE = pathlib.Path(__file__).parent

# Halves: zeros, smallest subnormal, largest subnormal, smallest normal, 1, 65504, infinities, 1/3 rounded.
F16_BITS = [0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0xFC00, 0x3555]
# The same idea in bfloat16: zeros, smallest subnormal, smallest normal, 1, -2, largest, infinity, 1/3 rounded.
BF16_BITS = [0x0000, 0x8000, 0x0001, 0x0080, 0x3F80, 0xC000, 0x7F7F, 0x7F80, 0x3EAB]


KEPT = []  # serialize() takes addresses: the arrays must stay alive


def raw(dtype, shape, data):
    KEPT.append(numpy.frombuffer(data or b"\0", dtype="u1").copy())
    return safetensors.TensorSpec(dtype=dtype, shape=shape, data_ptr=KEPT[-1].ctypes.data, data_len=len(data))


def all_types():
    halves = numpy.array(F16_BITS, dtype="<u2")
    brains = numpy.array(BF16_BITS, dtype="<u2")
    widened = (brains.astype("<u4") << 16).view("<f4")
    tensors = {
        "f64": raw("float64", [3], struct.pack("<3d", 1.5, -2.25, 1e300)),
        "f32": raw("float32", [2, 2], struct.pack("<4f", 1.5, -2.25, 3.0e38, 1e-45)),
        "f16": raw("float16", [len(halves)], halves.tobytes()),
        "f16 widened": raw("float32", [len(halves)], halves.view("<f2").astype("<f4").tobytes()),
        "bf16": raw("bfloat16", [3, 3], brains.tobytes()),
        "bf16 widened": raw("float32", [3, 3], widened.tobytes()),
        "scalar": raw("float32", [], struct.pack("<f", 42.0)),
        "empty": raw("float32", [0, 5], b""),
        "bool": raw("bool", [2], b"\x01\x00"),
    }
    for bits in (8, 16, 32, 64):
        for kind, name in (("i", "int"), ("u", "uint")):
            values = numpy.arange(1, 7, dtype=f"<{kind}{bits // 8}").reshape(2, 3)
            tensors[f"{kind}{bits}"] = raw(f"{name}{bits}", [2, 3], values.tobytes())
    (HERE / "all_types.safetensors").write_bytes(
        safetensors.serialize(tensors, metadata={"format": "pt", "note": "für alle"})
    )


def sharded():
    folder = HERE / "sharded"
    folder.mkdir(exist_ok=True)
    a = {"model.a.weight": numpy.arange(6, dtype="<f4").reshape(2, 3)}
    b = {
        "model.b.weight": numpy.arange(10, 14, dtype="<f2"),
        "model.c.bias": numpy.array([-1.0], dtype="<f8"),
    }
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    safetensors.numpy.save_file(a, folder / names[0], metadata={"format": "pt"})
    safetensors.numpy.save_file(b, folder / names[1], metadata={"format": "pt"})
    index = {"metadata": {"total_size": 40}, "weight_map": {k: names[0] for k in a} | {k: names[1] for k in b}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


all_types()
sharded()
