#!/usr/bin/env python3
"""Compares the speed of `lockstep pack` with that of tiktoken and of Hugging Face's `tokenizers`: the same vocabulary, the same
text, one core, and the same ids.

    python3 -m venv venv && venv/bin/pip install tiktoken==0.14.0 tokenizers==0.23.3 h5py numpy
    venv/bin/python tests/golden/text/compare_tokenizer_speed.py build/release/lockstep GPT2.gguf TEXT

TEXT is UTF-8, 50 MB or more of varied text: repeated text would flatter the caches. The vocabulary is one with GPT-2's pattern.

What is timed, after a round that checks the ids and warms everything up:

  - lockstep: the whole command, from its start to its end, with MPI, reading, writing HDF5 and syncing it to the disk; and
    beside it what its own log says of the packing, which is without the start and the loading of the vocabulary;
  - the others: encoding only, with the text in memory and the tokenizer loaded, and without turning their results into
    anything. tiktoken gets the text as a whole and in pieces, with its own pattern and with a faster one; tokenizers in
    batches of 64 pieces, without the offsets that its plain encode_batch would make in twice the time. Of pieces from
    100 bytes to 1 MiB, none served either library clearly better than 16 KiB.

Rounds go through all lines in turn. The figures are medians in MB (10^6 bytes) a second, of the time on the clock and of the
processor's; they differ where other work shares the core.
"""
import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "LOCKSTEP_PROGRESS": "lines"}

import h5py  # noqa: E402: the libraries read these when they are loaded
import numpy as np  # noqa: E402
import tiktoken  # noqa: E402
import tokenizers  # noqa: E402
from tiktoken_ext.openai_public import r50k_pat_str  # noqa: E402

# The same language as tiktoken's own r50k_pat_str, which has possessive quantifiers; without them it is a fifth faster.
FAST_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PIECE, BATCH = 1 << 14, 64
Ids = np.ndarray


def pack(lockstep: str, vocabulary: str, text: str, folder: pathlib.Path) -> str:
    command = [lockstep, "pack", "--format", "text", "--tokenizer", vocabulary, "--split", "1", "--overwrite", "--out", folder, text]
    return subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True).stderr


def packed_ids(dataset: pathlib.Path) -> Ids:
    shards = []
    for file in json.loads((dataset / "dataset.json").read_text())["files"]:
        with h5py.File(dataset / file["name"]) as shard:
            shards.append(shard["tokens"][:])
    return np.concatenate(shards)[:-1]  # the last one ends the text


def tiktoken_of(path: pathlib.Path, pattern: str) -> tiktoken.Encoding:
    """tiktoken takes a token's id for its rank, so the merges have to make the ids in their order."""
    definition = json.loads(path.read_text(encoding="utf-8"))
    model = definition["model"]
    special = {token["content"]: token["id"] for token in definition["added_tokens"]}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made = [model["vocab"][left + right] for left, right in merges]
    assert made == sorted(made) and made[0] == 256, "the ids are not in the order of the merges"
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    ranks = {bytes(byte_of[c] for c in token): i for token, i in model["vocab"].items() if token not in special}
    return tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def pieces_of(text: str) -> list[str]:
    """Cut before a line's end that follows something visible: every such place is between two words of the pattern."""
    pieces, begin = [], 0
    for cut in re.finditer(r"(?<=[!-~])\n", text):
        if cut.start() - begin >= PIECE:
            pieces.append(text[begin:cut.start()])
            begin = cut.start()
    return [*pieces, text[begin:]]


def batches(pieces: list[str]) -> Iterator[list[str]]:
    return (pieces[i:i + BATCH] for i in range(0, len(pieces), BATCH))


def each(encode: Callable, inputs) -> None:
    for one in inputs:
        encode(one)


def check(name: str, ids: Ids, ours: Ids, tik: tiktoken.Encoding) -> None:
    if np.array_equal(ids, ours):
        return
    common = min(len(ids), len(ours))
    at = int(np.argmax(np.append(ids[:common] != ours[:common], True)))
    near = [tik.decode(some[max(at - 5, 0):at + 5].tolist()) for some in (ours, ids)]
    raise SystemExit(f"{name} differs from lockstep in token {at}: {near[1]!r} and {near[0]!r}; {len(ids)} and {len(ours)} tokens")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    def cpu() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    start, cpu_start = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - start, cpu() - cpu_start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lockstep")
    parser.add_argument("vocabulary", help="GGUF or tokenizer.json")
    parser.add_argument("text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--out", help="folder for what is packed, of the kind of disk to measure with")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, [arguments.core])
    text = pathlib.Path(arguments.text).read_bytes().decode("utf-8")
    megabytes = os.path.getsize(arguments.text) / 1e6
    pieces = pieces_of(text)
    with tempfile.TemporaryDirectory(dir=arguments.out) as name:
        folder = pathlib.Path(name)
        logs: list[float] = []

        def run_pack() -> None:
            log = pack(arguments.lockstep, arguments.vocabulary, arguments.text, folder)
            logs.append(float(re.findall(r"pack: .* megabytes, ([0-9.]+) MB/s, in", log)[-1]))

        run_pack()
        ours = packed_ids(folder / "train")
        definition = folder / "train" / "tokenizer.json"
        own, tik = tiktoken_of(definition, r50k_pat_str), tiktoken_of(definition, FAST_PATTERN)
        peer = tokenizers.Tokenizer.from_file(str(definition))
        peer.encode_special_tokens = True  # as text
        check("tiktoken", own.encode_to_numpy(text, disallowed_special=()), ours, tik)
        check("tiktoken in pieces", np.concatenate([np.array(tik.encode_ordinary(piece)) for piece in pieces]), ours, tik)
        encodings = (encoding for batch in batches(pieces) for encoding in peer.encode_batch_fast(batch, add_special_tokens=False))
        check("tokenizers", np.concatenate([np.array(encoding.ids) for encoding in encodings]), ours, tik)
        print(f"{len(ours)} identical ids from lockstep, tiktoken {tiktoken.__version__}, tokenizers {tokenizers.__version__}; "
              f"{megabytes:.1f} MB in {len(pieces)} pieces")

        works: dict[str, Callable[[], object]] = {
            "lockstep pack": run_pack,
            "tiktoken encode_ordinary, own pattern": lambda: each(own.encode_ordinary, pieces),
            "tiktoken encode_ordinary, pieces": lambda: each(tik.encode_ordinary, pieces),
            "tiktoken encode_ordinary, whole": lambda: tik.encode_ordinary(text),
            "tiktoken encode_to_numpy, pieces": lambda: each(lambda p: tik.encode_to_numpy(p, disallowed_special=()), pieces),
            "tokenizers encode_batch_fast, pieces":
                lambda: each(lambda b: peer.encode_batch_fast(b, add_special_tokens=False), batches(pieces)),
        }
        logs.clear()
        times: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
        for _ in range(arguments.rounds):
            for what, work in works.items():
                times[what].append(timed(work))

    def speeds(what: str) -> list[float]:
        return [megabytes / statistics.median(column) for column in zip(*times[what])]
    base = speeds("lockstep pack")
    print(f"{'median of ' + str(arguments.rounds):40}{'MB/s':>8}{'min':>8}{'max':>8}{'of CPU':>8}   lockstep is faster by (of CPU)")
    for what in works:
        wall = [megabytes / seconds for seconds, _ in times[what]]
        median, cpu = speeds(what)
        print(f"{what:40}{median:8.2f}{min(wall):8.2f}{max(wall):8.2f}{cpu:8.2f}   {base[0] / median:.2f} ({base[1] / cpu:.2f})")
    print(f"{'the packing alone, by lockstep’s log':40}{statistics.median(logs):8.2f}{min(logs):8.2f}{max(logs):8.2f}")


if __name__ == "__main__":
    main()
