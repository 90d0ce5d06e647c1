"""The digest of a training state, computed as docs/checkpoint-format.md says (pip install numpy xxhash safetensors).

    python3 digest.py                    the example of the specification and of digest_test.cpp
    python3 digest.py CHECKPOINT_FOLDER  a checkpoint's digest from its files, beside the one its manifest states

Made with numpy 2.4.6, xxhash 4.1.0.
"""

import json
import pathlib
import sys

import numpy
import xxhash

KINDS = ("master", "exp_avg", "exp_avg_sq")


def digest(parameters):
    """parameters: {name: (shape, {kind: flat float32 array})}"""
    total = 0
    lines = []
    for name, (shape, values) in parameters.items():
        dimensions = ",".join(str(d) for d in shape)
        lines.append(f"{name}\n{dimensions}\n")
        for kind in KINDS:
            key = xxhash.xxh3_128_intdigest(f"{name}\n{dimensions}\n{kind}".encode()) % 2**64
            flat = values[kind].astype("<f4")
            for number, first in enumerate(range(0, len(flat), 16)):
                seed = (key + number) % 2**64
                total += xxhash.xxh3_128_intdigest(flat[first : first + 16].tobytes(), seed=seed)
    text = f"lockstep digest 1\n{total % 2**128:032x}\n" + "".join(sorted(lines))
    return xxhash.xxh3_128_hexdigest(text.encode())


def example():
    parameters = {}
    for name, shape in (("b", (3,)), ("w", (4, 5))):
        n = int(numpy.prod(shape))
        k = numpy.arange(n, dtype="<f4")
        parameters[name] = (shape, {"master": k + 1, "exp_avg": k / 2, "exp_avg_sq": numpy.full(n, 0.25, "<f4")})
    return digest(parameters)


def of_checkpoint(folder):
    from safetensors.numpy import load_file

    manifest = json.loads((folder / "manifest.json").read_text())
    model = load_file(folder / "model.safetensors") if manifest["model_dtype"] == "f32" else None
    flat = {}
    for kind in KINDS if model is None else KINDS[1:]:
        flat[kind] = numpy.concatenate([load_file(folder / s["file"])[kind] for s in manifest["state"]])
    parameters = {}
    for p in manifest["parameters"]:
        n = int(numpy.prod(p["shape"]))
        values = {kind: array[p["offset"] : p["offset"] + n] for kind, array in flat.items()}
        if model is not None:
            values["master"] = numpy.concatenate([model[t["name"]].reshape(-1) for t in p["tensors"]])
        parameters[p["name"]] = (p["shape"], values)
    return digest(parameters), manifest["digest"]


if __name__ == "__main__":
    print(*(of_checkpoint(pathlib.Path(sys.argv[1])) if len(sys.argv) > 1 else [example()]))
