#!/usr/bin/env python3
"""Loads checkpoints that `lockstep train` wrote with transformers, as they are, and compares what the two compute.

    python3 -m venv venv && venv/bin/pip install torch transformers h5py
    venv/bin/python tests/golden/model/check_with_transformers.py --lockstep build/release/lockstep \
        --data data/shakespeare/valid runs/shakespeare/checkpoints/step-00002000 [CHECKPOINT...]

Run by hand: the tests need no Python packages. For each checkpoint it expects

  - no missing, unexpected or mismatched weight, and no warning at all, from AutoModelForCausalLM;
  - that AutoTokenizer gives the token ids of the packed dataset for its own decoded text;
  - the loss of `lockstep eval` on the first samples of the dataset, within 1e-4 (1e-2 for weights in bf16, 2e-3 in fp16,
    which transformers computes with in bf16 and fp16 here);
  - the continuation of `lockstep generate --temperature 0`.

Last run with transformers 5.23.0 and torch 2.6.0.
"""

import argparse
import json
import logging
import pathlib
import subprocess
import sys
import warnings

import h5py
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLES, CONTINUATION = 8, 24


class Collected(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def dataset_tokens(folder, count):
    tokens = []
    for file in json.loads((folder / "dataset.json").read_text())["files"]:
        with h5py.File(folder / file["name"]) as shard:
            tokens += shard["tokens"][: count - len(tokens)].tolist()
        if len(tokens) == count:
            return tokens
    sys.exit(f"{folder}: fewer than {count} tokens")


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def check(lockstep, data, checkpoint):
    handler = Collected()
    logging.getLogger("transformers").addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, loading = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    logging.getLogger("transformers").removeHandler(handler)
    problems = [f"{kind}: {value}" for kind, value in loading.items() if value]
    problems += [f"warning: {w.message}" for w in caught] + [f"log: {m}" for m in handler.messages]

    model.eval()
    context = model.config.max_position_embeddings
    tokens = dataset_tokens(data, SAMPLES * context + 1)
    text = tokenizer.decode(tokens[:context])
    if tokenizer.encode(text, add_special_tokens=False) != tokens[:context]:
        problems.append("the tokenizer gives other ids")

    inputs = torch.tensor(tokens[:-1]).reshape(SAMPLES, context)
    targets = torch.tensor(tokens[1:])
    with torch.no_grad():
        logits = model(input_ids=inputs).logits.float()
    theirs = F.cross_entropy(logits.reshape(targets.numel(), -1), targets).item()
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.dtype, "fp32")
    ours = json.loads(run(lockstep, "eval", "--json", "--model", checkpoint, "--data", data, "--batch-size", str(SAMPLES),
                          "--batches", "1", "--precision", precision))["loss"]
    tolerance = {"bf16": 1e-2, "fp16": 2e-3, "fp32": 1e-4}[precision]
    if not abs(ours - theirs) < tolerance:
        problems.append(f"loss {theirs}, lockstep says {ours}")

    if precision == "fp32":
        prompt = tokenizer.decode(tokens[:16])
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        continued = model.generate(**ids, max_new_tokens=CONTINUATION, do_sample=False,
                                   pad_token_id=model.config.eos_token_id)
        expected = tokenizer.decode(continued[0], skip_special_tokens=True)
        printed = run(lockstep, "generate", "--model", checkpoint, "--prompt", prompt, "--temperature", "0",
                      "--max-tokens", str(CONTINUATION)).decode(errors="replace")
        if printed != expected + "\n":
            problems.append(f"generates {expected!r}, lockstep {printed!r}")

    print(f"{checkpoint}: {type(model).__name__} {model.dtype}, loss {theirs:.6f}, lockstep {ours:.6f}:",
          "ok" if not problems else "")
    for problem in problems:
        print(f"  {problem}")
    return not problems


parser = argparse.ArgumentParser()
parser.add_argument("--lockstep", required=True)
parser.add_argument("--data", required=True, type=pathlib.Path)
parser.add_argument("checkpoints", nargs="+", type=pathlib.Path)
options = parser.parse_args()
sys.exit(0 if all([check(options.lockstep, options.data, c) for c in options.checkpoints]) else 1)
