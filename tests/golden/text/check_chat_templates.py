#!/usr/bin/env python3
"""Compares the tokens of packed conversations with those that transformers' apply_chat_template gives.

    python3 -m venv venv && venv/bin/pip install transformers h5py
    venv/bin/python tests/golden/text/check_chat_templates.py --lockstep build/release/lockstep

Run by hand: the tests need no Python packages. For each template it packs a few conversations with a small tokenizer that has the
template's markers, trains a model of no size for one step, and lets transformers write the same conversations with the chat template
that training left in tokenizer_config.json. Texts must be equal, and so must the questions with add_generation_prompt.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
from transformers import AutoTokenizer

TOKENIZERS = pathlib.Path(__file__).parent
MARKERS = {"llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "gemma": ["<start_of_turn>", "<end_of_turn>", "<bos>"]}
PLAIN = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "hello, 'you' \\ there"},
         {"role": "user", "content": "2+2?\nNow."}, {"role": "assistant", "content": "4"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}] + PLAIN
WITH_TOOL = PLAIN[:2] + [{"role": "tool", "content": "{\"a\": 1}"}, {"role": "assistant", "content": "done"}]
CONFIG = """
run: {dir: RUNS}
model: {family: llama, layers: 1, heads: 1, width: 8, context: 256}
data: {train: DATA/train}
train: {steps: 1, micro_batches: 1, micro_batch_size: 1, threads: 1}
"""


def tokenizer_with(markers, base, folder):
    tokenizer = json.loads((TOKENIZERS / base).read_text())
    known = {token["content"] for token in tokenizer["added_tokens"]}
    for marker in markers:
        if marker not in known:
            identifier = max([*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]) + 1
            tokenizer["added_tokens"].append({"id": identifier, "content": marker, "single_word": False, "lstrip": False,
                                              "rstrip": False, "normalized": False, "special": True})
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    return path


def check(name, lockstep, folder):
    conversations = [PLAIN, WITH_SYSTEM] + ([WITH_TOOL] if name in ("chatml", "qwen", "llama3") else [])
    base = "llama3.json" if name == "llama3" else "smollm.json"
    tokenizer_path = tokenizer_with(MARKERS.get(name, []), base, folder)
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in conversations))
    (folder / "job.yaml").write_text(CONFIG.replace("RUNS", str(folder / "runs")).replace("DATA", str(folder / "data")))
    run = lambda *words: subprocess.run([lockstep, *words], check=True, capture_output=True)
    run("pack", "--format", "chat", "--template", name, "--tokenizer", str(tokenizer_path), "--split", "1", "--out",
        str(folder / "data"), str(folder / "chats.jsonl"))
    run("train", str(folder / "job.yaml"))
    with h5py.File(folder / "data" / "train" / "00000.h5") as shard:
        tokens, offsets = shard["tokens"][:].tolist(), shard["document_offsets"][:].tolist()
    tokenizer = AutoTokenizer.from_pretrained(folder / "runs" / "job" / "checkpoints" / "step-00000001")
    for conversation, begin, end in zip(conversations, offsets, offsets[1:] + [len(tokens)]):
        ours = tokenizer.decode(tokens[begin:end])
        theirs = tokenizer.apply_chat_template(conversation, tokenize=False)
        question = tokenizer.apply_chat_template(conversation[:-1], tokenize=False, add_generation_prompt=True)
        if ours != theirs or not ours.startswith(question):
            return f"NOT OK\n  lockstep     {ours!r}\n  transformers {theirs!r}\n  question     {question!r}"
    return f"{len(conversations)} conversations, ok"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lockstep", required=True)
    lockstep = parser.parse_args().lockstep
    failed = False
    for name in ("alpaca", "chatml", "default", "gemma", "llama2", "llama3", "mistral", "qwen"):
        with tempfile.TemporaryDirectory() as folder:
            result = check(name, lockstep, pathlib.Path(folder))
        print(f"{name}: {result}")
        failed = failed or "NOT OK" in result
    sys.exit(failed)


main()
