#!/usr/bin/env python3
"""Runs models that `lockstep export --to gguf` wrote in llama.cpp, and compares what it computes with transformers.

    python3 -m venv venv && venv/bin/pip install torch transformers llama-cpp-python
    venv/bin/python tests/golden/model/check_gguf.py CHECKPOINT MODEL.gguf [MODEL.gguf...]

Run by hand: the tests need no Python packages. CHECKPOINT is the Hugging Face folder that the files were exported from. Prints for
each file the largest difference of logits over a text, beside the largest logit, the mean KL divergence and whether the likeliest
tokens are the same; an f32 file must agree within 1e-3 of the largest logit.
"""

import pathlib
import sys

import llama_cpp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak."


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def main():
    checkpoint, files = sys.argv[1], sys.argv[2:]
    tokens = AutoTokenizer.from_pretrained(checkpoint)(TEXT)["input_ids"][:48]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].double().numpy()
    failed = False
    for name in files:
        llama = llama_cpp.Llama(name, n_ctx=64, logits_all=True, verbose=False)
        same_tokens = llama.tokenize(TEXT.encode(), add_bos=False, special=False)[:48] == tokens
        llama.eval(tokens)
        actual = np.array(llama.scores[:len(tokens)], dtype=np.float64)
        difference = np.abs(actual - expected).max()
        p, q = log_softmax(expected), log_softmax(actual)
        kl = (np.exp(p) * (p - q)).sum(-1).mean()
        agree = (actual.argmax(-1) == expected.argmax(-1)).mean()
        ok = same_tokens and (".f32." not in pathlib.Path(name).name or difference < 1e-3 * np.abs(expected).max())
        failed = failed or not ok
        print(f"{name}: difference {difference:.5f} of {np.abs(expected).max():.2f}, KL {kl:.2e}, likeliest equal {agree:.0%}, "
              f"tokens {'equal' if same_tokens else 'DIFFER'}: {'ok' if ok else 'NOT OK'}")
    sys.exit(failed)


main()
