#!/usr/bin/env python3
"""Compares our tokenizers with Hugging Face's `tokenizers`: does it load what we write, does it encode the same, does it train
the same vocabulary?

Run: ninja tokenizer_program, pip install tokenizers, and
  python3 check_written_tokenizer.py PROGRAM [--train CORPUS SIZE] TOKENIZER...
where PROGRAM is the built tokenizer_program and TOKENIZER is "bytes", a GGUF file, a tokenizer.json, or a SentencePiece model: its ids
are then compared with those of `sentencepiece` too (pip install sentencepiece).
"""
import argparse
import json
import pathlib
import random
import subprocess
import tempfile

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SNIPPETS = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b", "\x1c", "\x85", "'s", "'S", "'LL", "'\u017f", "'t",
            "1", "²", "Ⅷ", "٣", "2024", "a", "é", "e\u0301", "Hello", "world", "你好", "ñ", "!", "?!", "-", "_", "🚀", "👨\u200d👩", "don't", "\0",
            "http://x", "<|endoftext|>", "ก็", "न्", "한글", "\u1112\u1161", "<", "|>"]


def make_texts(count):
    rng = random.Random(1)
    texts = ["".join(rng.choice(SNIPPETS) for _ in range(rng.randint(0, 30))) for _ in range(count)]
    golden = pathlib.Path(__file__).parent / "cases.json"
    texts += [case["text"] for case in json.loads(golden.read_text(encoding="utf-8"))]
    texts.append(pathlib.Path(__file__).read_text(encoding="utf-8"))
    return texts


def check_tokenizer(program, name, folder, texts):
    written = str(folder / "tokenizer.json")
    subprocess.run([program, "write", name, written], check=True, stdout=subprocess.DEVNULL)
    peer = Tokenizer.from_file(written)
    for special in (False, True):
        peer.encode_special_tokens = not special
        command = [program, "encode", name] + (["special"] if special else [])
        output = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True).stdout
        ours = [json.loads(line) for line in output.splitlines()]
        theirs = [peer.encode(text, add_special_tokens=False).ids for text in texts]
        differ = [text for text, a, b in zip(texts, ours, theirs) if a != b]
        mode = "recognised" if special else "as text"
        print(f"{name}, special tokens {mode}: {len(texts)} texts, {len(differ)} differ {[t[:60] for t in differ[:3]]}")
        assert len(ours) == len(texts) and not differ


def texts_of_pieces(model):
    """Any pieces in a row, and runs of spaces, among whose tokens merges are equal."""
    rng = random.Random(2)
    pieces = [model.id_to_piece(i).replace("\u2581", " ") for i in range(model.vocab_size()) if not model.is_byte(i) and not model.is_control(i)]
    texts = ["".join(rng.choice(pieces) for _ in range(rng.randint(1, 40))) for _ in range(2000)]
    return texts + ["".join(rng.choice([" ", "  ", "   ", "a", " x", "\n"]) for _ in range(rng.randint(1, 60))) for _ in range(300)]


def check_sentencepiece(program, name, model, texts):
    output = subprocess.run([program, "encode", name], input=json.dumps(texts), capture_output=True, text=True, check=True).stdout
    ours = [json.loads(line) for line in output.splitlines()]
    differ = [text for text, a, b in zip(texts, ours, model.encode(texts)) if a != b]
    print(f"{name}, sentencepiece: {len(texts)} texts, {len(differ)} differ {[t[:60] for t in differ[:3]]}")
    assert len(ours) == len(texts) and not differ


def check_training(program, corpus, size, folder):
    written = folder / "trained.json"
    subprocess.run([program, "train", corpus, size, str(written)], check=True, stdout=subprocess.DEVNULL)
    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = pathlib.Path(corpus).read_bytes().decode("utf-8")
    peer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=int(size), min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    theirs = json.loads(peer.to_str())["model"]
    ours = json.loads(Tokenizer.from_file(str(written)).to_str())["model"]
    same = ours["vocab"] == theirs["vocab"] and ours["merges"] == theirs["merges"]
    print(f"{corpus}, {size} tokens: {len(ours['merges'])} and {len(theirs['merges'])} merges, {'the same' if same else 'they differ'}")
    assert same
    return str(written)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("tokenizers", nargs="*")
    parser.add_argument("--train", nargs=2, metavar=("CORPUS", "SIZE"))
    arguments = parser.parse_args()
    texts = make_texts(3000)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        names = list(arguments.tokenizers)
        if arguments.train:
            names.append(check_training(arguments.program, *arguments.train, folder))
        for tokenizer in names:
            more = []
            if tokenizer.endswith(".model"):
                import sentencepiece  # only for these
                model = sentencepiece.SentencePieceProcessor(model_file=tokenizer)
                more = texts_of_pieces(model)
                check_sentencepiece(arguments.program, tokenizer, model, texts + more)
            check_tokenizer(arguments.program, tokenizer, folder, texts + more)


if __name__ == "__main__":
    main()
