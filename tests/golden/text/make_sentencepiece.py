#!/usr/bin/env python3
"""Makes the files sentencepiece* beside it with the packages of SentencePiece and Hugging Face (written with sentencepiece
0.2.3, tokenizers 0.23.3, transformers 5.24.0), from corpus.txt:

  sentencepiece.model       the form of Llama 2: fallback to bytes, no normalisation, a user-defined symbol
  sentencepiece_plain.model without a fallback to bytes, and with user-defined symbols of spaces
  sentencepiece.json        what transformers makes of sentencepiece.model
  sentencepiece_cases.json  forms: patches (RFC 7396) of sentencepiece.json, each a form in which such a file is found;
                            cases: texts, with the ids that `sentencepiece` gives for each model (specials are text), and
                            for each form those of `tokenizers`, with special tokens as plain text and, where that differs,
                            recognised, and what it decodes the former to, where that is not the text

Run: pip install sentencepiece==0.2.3 tokenizers==0.23.3 transformers==5.24.0 protobuf && python3 make_sentencepiece.py
"""
import io
import json
import pathlib
import shutil
import tempfile

import sentencepiece
from tokenizers import Tokenizer
from transformers import LlamaTokenizerFast

from make_tokenizers import TEXTS

HERE = pathlib.Path(__file__).parent
MARK = "\u2581"

MORE_TEXTS = [
    "a", " a", "  a", "   a   ", "a ", "a  ", " the captain", "  the captain", "\ta", "\n a", "a\n\n b", "    return 0;\n        return 1;\n",
    "<s>", "</s>", "<s>the</s>", "<s> the </s>", "the<s>captain", "the <s> captain", "<s><s>a", "a</s>\n", "<unk>", "the<unk>captain", "<0x41>",
    "<tool>", "<tool>the", "the<tool>captain", " <tool> the", "<tool><tool>", "a<tool", "the <tool>  captain", "<s><tool>a",
    f"{MARK}", f"{MARK}a", f"a{MARK}b", f" {MARK} a", f"{MARK}{MARK}the captain{MARK}",
    "\u0590unknown\u0591 \u0592\u0593\u0594 x\u0595\n\u0596 \u0597", "ééé ñ\u0590\u0590ñ", "thethethe thethe", "a" * 99, "=" * 63, " " * 33, "ab" * 70,
    # Conversations, for ChatEncoder: in the templates mistral and default.
    "<s>[INST] the captain[/INST] at dawn</s>[INST] 2+2?[/INST] the 4</s>", "Human: the captain</s>\nAssistant:at dawn</s>\n",
    "The captain said: \"We'll sail at dawn\". In 1789, 1812 and 1848 it was 42 of 33,333.", "我想在苹果工作。今天天气很好。 日本語のテキスト 東京",
]


def train(name, **options):
    model = io.BytesIO()  # not files: their names would be in the model
    lines = (HERE / "corpus.txt").read_text(encoding="utf-8").split("\n")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True, num_threads=1, minloglevel=2, **options)
    (HERE / f"{name}.model").write_bytes(model.getvalue())


def convert(folder):
    shutil.copy(HERE / "sentencepiece.model", folder / "tokenizer.model")
    always, first = (json.loads(LlamaTokenizerFast.from_pretrained(str(folder), legacy=legacy).backend_tokenizer.to_str())
                     for legacy in (True, False))
    assert always["pre_tokenizer"]["prepend_scheme"] == "always"
    assert patched(always, FORMS["first"]) == first
    return always


def metaspace(scheme, split=False):
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
LEGACY = {
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACE]},
    "pre_tokenizer": None,
    "model": {"unk_token": "<unk>"},
}
FORMS = {
    "always": {},  # what transformers makes with legacy=True
    "first": {"pre_tokenizer": metaspace("first")},  # and with legacy=False
    "legacy": LEGACY,  # Llama 2's own file
    "gemma": {
        "normalizer": REPLACE,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "decoder": {"decoders": [{"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    },
    "words": {"pre_tokenizer": metaspace("always", split=True)},
    "never": {"pre_tokenizer": metaspace("never", split=True), "decoder": metaspace("never", split=True)},
    "unknown": {**LEGACY, "model": {"unk_token": "<unk>", "byte_fallback": False}},
    "unknown_each": {**LEGACY, "model": {"unk_token": "<unk>", "byte_fallback": False, "fuse_unk": False}},
    "normalized": {**LEGACY, "added_tokens": [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": i < 3}
        for i, text in enumerate(["<unk>", "<s>", "</s>", "<tool>"])]},
}


def patched(document, patch):
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


def ids_of_form(tokenizer, text):
    tokenizer.encode_special_tokens = False
    recognized = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = True
    as_text = tokenizer.encode(text, add_special_tokens=False).ids
    decoded = tokenizer.decode(as_text, skip_special_tokens=False)
    result = {"as_text": as_text}
    if recognized != as_text:
        result["recognized"] = recognized
    if decoded != text:
        result["decoded"] = decoded
    return result


def main():
    train("sentencepiece", vocab_size=800, byte_fallback=True, user_defined_symbols=["<tool>"], character_coverage=0.98)
    train("sentencepiece_plain", vocab_size=560, user_defined_symbols=["<tool>", MARK * 4, "the"], character_coverage=0.98)
    with tempfile.TemporaryDirectory() as folder:
        base = convert(pathlib.Path(folder))
    (HERE / "sentencepiece.json").write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    models = {name: sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"{name}.model"))
              for name in ("sentencepiece", "sentencepiece_plain")}
    forms = {name: Tokenizer.from_str(json.dumps(patched(base, patch))) for name, patch in FORMS.items()}
    lines = []
    for text in TEXTS + MORE_TEXTS:
        case = {"text": text, "models": {name: model.encode(text) for name, model in models.items()},
                "forms": {name: ids_of_form(tokenizer, text) for name, tokenizer in forms.items()}}
        lines.append(json.dumps(case, ensure_ascii=True, separators=(",", ":")))
    cases = ",\n".join(lines)
    patches = json.dumps(FORMS, ensure_ascii=True, separators=(",", ":"))
    (HERE / "sentencepiece_cases.json").write_text(f'{{"forms":{patches},\n"cases":[\n{cases}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
