#!/usr/bin/env python3
"""Holds `lockstep verify` on GGUF files against Python's `gguf`, whose reader and quants are independent of ours.

    python3 -m venv venv && venv/bin/pip install gguf numpy
    venv/bin/python tests/golden/model/check_gguf_reader.py LOCKSTEP CHECKPOINT MODEL.gguf [MODEL.gguf...]

Run by hand: the tests need no Python packages. LOCKSTEP is the program, CHECKPOINT the Hugging Face folder that the files were exported
from. Each file's tensors are dequantised by Python's `gguf`, put back under the names and in the order of CHECKPOINT's config.json, and
saved as safetensors in f32; `lockstep verify` then has to find no difference at all between that folder and the file. Of types that are
listed but not read here, the table of sizes is compared.
"""

import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import gguf
import numpy as np

NAMES = {
    "token_embd": ("transformer.wte", "model.embed_tokens"), "position_embd": ("transformer.wpe", None),
    "output_norm": ("transformer.ln_f", "model.norm"), "output": (None, "lm_head"), "attn_norm": ("ln_1", "input_layernorm"),
    "attn_qkv": ("attn.c_attn", None), "attn_q": (None, "self_attn.q_proj"), "attn_k": (None, "self_attn.k_proj"),
    "attn_v": (None, "self_attn.v_proj"), "attn_q_norm": (None, "self_attn.q_norm"), "attn_k_norm": (None, "self_attn.k_norm"),
    "attn_output": ("attn.c_proj", "self_attn.o_proj"), "ffn_norm": ("ln_2", "post_attention_layernorm"),
    "ffn_gate": (None, "mlp.gate_proj"), "ffn_up": ("mlp.c_fc", "mlp.up_proj"), "ffn_down": ("mlp.c_proj", "mlp.down_proj")}


def hf_name(name, gpt2):
    match = re.match(r"^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$", name)
    layer, part, kind = match.groups()
    path = NAMES[part][0 if gpt2 else 1]
    prefix = f"{'transformer.h' if gpt2 else 'model.layers'}.{layer}." if layer else ""
    return f"{prefix}{path}.{kind}"


def ordered(values, name, config):
    """In Hugging Face's order."""
    if config["model_type"] == "gpt2":
        return values.T if values.ndim == 2 and name.startswith("blk.") else values
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if config["model_type"] in ("llama", "mistral") and heads:
        rows, columns = values.shape
        return values.reshape(config[heads], -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return values


def save_safetensors(tensors, path):
    header, offset = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.tobytes())


def main():
    lockstep, checkpoint, files = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    config = json.loads((checkpoint / "config.json").read_text())
    failed = False
    for path in files:
        tensors = {}
        types = set()
        for tensor in gguf.GGUFReader(path).tensors:
            if tensor.name == "rope_freqs.weight":
                continue
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            values = values.reshape([int(size) for size in reversed(tensor.shape)])
            types.add(tensor.tensor_type.name)
            tensors[hf_name(tensor.name, config["model_type"] == "gpt2")] = np.ascontiguousarray(ordered(values, tensor.name, config))
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "tokenizer.json"):
                shutil.copy(checkpoint / name, folder)
            save_safetensors(tensors, pathlib.Path(folder) / "model.safetensors")
            result = subprocess.run([lockstep, "verify", folder, path, "--json"], capture_output=True, text=True)
        row = json.loads(result.stdout)["compared"][0] if result.returncode == 0 else {}
        ok = row.get("max_difference") == 0 and row.get("max_kl") == 0
        failed = failed or not ok
        print(f"{path}: {', '.join(sorted(types))}: {'the same to the bit' if ok else f'DIFFERS {row}{result.stderr}'}")

    source = (pathlib.Path(__file__).parents[3] / "trainer/formats/gguf_file.cpp").read_text()
    rows = re.findall(r'GgufTensorType\{(\d+), "(\w+)", (\d+), (\d+),', source)
    for number, name, values, size in rows:
        expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(number))]
        if gguf.GGMLQuantizationType(int(number)).name != name or expected != (int(values), int(size)):
            failed = True
            print(f"type {number}: {name} {values} {size}, expected {gguf.GGMLQuantizationType(int(number)).name} {expected}")
    print(f"{len(rows)} types compared; gguf knows {len(gguf.GGML_QUANT_SIZES)}")
    sys.exit(failed)


main()
