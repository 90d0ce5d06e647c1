#!/usr/bin/env python3
"""Makes the files beside it with Hugging Face's `tokenizers` (written with version 0.23.3):

  corpus.txt      what the vocabularies are trained on
  FORM.json       a small tokenizer.json in the form of a well-known family
  cases.json      texts, and for each form the byte lengths of the pieces that its pre-tokenizer makes, and the ids, with
                  special tokens as plain text and, where that differs, recognised

Run: pip install tokenizers==0.23.3 && python3 make_tokenizers.py
"""
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent

CORPUS = """\
// A vector grows when it is full: push_back() takes constant time, on average, however long it gets.
template <typename T> class vector { public: void push_back(const T& value); size_t size() const { return size_; } };
#include <string>\n#include <vector>\n\nint main() {\n\treturn 0;\n}\n
The captain said: "We'll sail at dawn, and we're not waiting." It's what he'd done in 1789, 1812 and 1848; they've told
him that they'd rather wait. I'm sure you don't mind! THEY'LL SAY IT'S LATE. In 33,333 of 100,000 cases the answer was 42.
Der König öffnete die Tür; größere Straßen führten über die Brücke. L'été, le garçon a mangé des crêpes à la crème.
Привет, мир! Как дела? Все хорошо, спасибо. Капитан сказал: мы отплываем на рассвете.
我想在苹果工作。今天天气很好,我们去公园散步吧。日本語のテキストもあります。東京は大きな都市です。
안녕하세요 세계. 오늘은 날씨가 좋습니다. नमस्ते दुनिया। สวัสดีชาวโลก مرحبا بالعالم שלום עולם
🚀 launch 🚀🚀 and 😀😀 smile ✅ done ½ of ⅔ is ⅓; x² + y² = z²; ∑ αβγ ≤ ∞
"""

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r\n\r\n", "\t\n", " \n", "\n ", " \n \n  x", "\x00", "a\x00b",
    "Hello world", " Hello  World!", "Hello, y'all! How are you 😁 ?", "we'll WE'LL we'Ll they'Ve it's IT'S I'd 'tis 'twas '",
    "'s", "''s", "'ſ x'ſ", "don't'll", "can''t", "x'y'z", "\u2019s it\u2019s", "3", "33", "333", "3333", "33333", "1234567890", "3.14159e-10",
    "٣٤٥ ५६७ ½¾ ²³ Ⅷ 〇 ①", "a1b2c3", "w048 7tuijk dsdfhu", "!!!!!!", " ( = ) [] {} <> || && ->* ::", "#include <vector>\n#include <string>\n",
    "\tif (x) {\n\t\treturn y;\r\n\t}\n", "trailing spaces   \nnext", "a    b     c      ", "    four\n        eight", "\n\n\n   \n\n x \n",
    "ends with space ", "ends with newline\n", "ends with both \n ", "a\u00a0b\u00a0\u00a0c", "\u3000全角\u3000\u3000空白\u3000", "x\u2028y\u2029z\u0085w",
    "a\u200bb\u200c\u200dc\ufeff", "\u180e\u180ea \u180eb", "\u1680ogham\u2003em\u205f\u202f", "a\x1cb\x1dc\x1ed\x1fe", "\x0b\x0c vertical \x0b\x0c",
    "é e\u0301 ñ n\u0303 Å A\u030a \u212b ﬁ ö̲", "\u0301starts with a mark", "a\u0301\u0323 a\u0323\u0301", "각 \u1100\u1161\u11a8", "Führer größer Straße",
    "нещо на Български", "我想在apple工作1314151天～", "日本語テキスト。\n東京", "कि की नमस्ते", "កាន់តែពិសេសអាចខលចេញ", "ภาษาไทยไม่มีช่องว่าง", "مرحبا بالعالم", "שָׁלוֹם",
    "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ (only emoji that has its own token)", "👨‍👩‍👧‍👦👩🏽‍💻🇩🇪🏴󠁧󠁢󠁥󠁮󠁧󠁿", "𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛",
    "\U0001F1E6\U0010FFFF\uffff\ufffd\ue000", "http://www.example.com/a_b?c=d&e=%20#f", "snake_case CamelCase kebab-case __init__ i++ --j",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "thethethethethethethethethethethethethethethethethethethethethethethethethethethethethethethethethethethethethe", "=" * 150, " " * 130 + "x", "\n" * 120,
    "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", " <|endoftext|> ", "<|endoftext|", "<<|endoftext|>>",
    "<|im_start|>user\nHi<|im_end|>\n", "<tool_call>{\"a\": 1}</tool_call>", "<|begin_of_text|>x<|end_of_text|>",
]

# The texts twice, so that there are merges to apply to them.
TRAINING_TEXT = CORPUS + "\n".join(TEXTS * 2)

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
# GPT-4o's, which no scanner is written for.
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def train(pre_tokenizer, size, specials, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TRAINING_TEXT], trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def make():
    forms = {}
    forms["gpt2"] = train(byte_level(True), 1000, ["<|endoftext|>"])
    forms["gpt2"].post_processor = processors.ByteLevel(trim_offsets=False)

    llama3 = train(pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]), 900, [], ignore_merges=True)
    llama3.add_special_tokens([AddedToken(t, normalized=False, special=True)
                               for t in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")])
    begin = llama3.token_to_id("<|begin_of_text|>")
    llama3.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", begin)])])
    forms["llama3"] = llama3

    qwen2 = train(pre_tokenizers.Sequence([split(QWEN2), byte_level(False)]), 900, [], normalizer=normalizers.NFC())
    qwen2.add_special_tokens([AddedToken(t, normalized=False, special=True)
                              for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    qwen2.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<tool_call>", "</tool_call>")])
    forms["qwen2"] = qwen2

    forms["smollm"] = train(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]), 900,
                            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    forms["o200k"] = train(pre_tokenizers.Sequence([split(O200K, "removed", True), byte_level(False)]), 900,
                           ["<|endoftext|>"])
    # Every behavior of Split once, and a literal pattern.
    forms["splits"] = train(pre_tokenizers.Sequence([
        split(r"\s+", "merged_with_next"), split(r"[_,;]", "merged_with_previous"), split(r"\p{Lu}", "contiguous"),
        pre_tokenizers.Split("->", "isolated"), pre_tokenizers.Digits(individual_digits=False), byte_level(False)]), 800,
        ["<|endoftext|>"])
    return forms


def save(name, tokenizer):
    text = json.loads(tokenizer.to_str(pretty=False))
    if name == "gpt2":  # older files write a merge as one string
        text["model"]["merges"] = [" ".join(pair) for pair in text["model"]["merges"]]
    (HERE / f"{name}.json").write_text(json.dumps(text, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def main():
    (HERE / "corpus.txt").write_bytes(TRAINING_TEXT.encode())
    forms = make()
    cases = [{"text": text, "forms": {}} for text in TEXTS]
    for name, tokenizer in forms.items():
        save(name, tokenizer)
        loaded = Tokenizer.from_file(str(HERE / f"{name}.json"))
        for case in cases:
            loaded.encode_special_tokens = False
            recognized = loaded.encode(case["text"], add_special_tokens=False).ids
            loaded.encode_special_tokens = True
            as_text = loaded.encode(case["text"], add_special_tokens=False).ids
            pieces = loaded.pre_tokenizer.pre_tokenize_str(case["text"])
            lengths = [len(case["text"][begin:end].encode()) for _, (begin, end) in pieces]
            case["forms"][name] = {"pieces": lengths, "as_text": as_text}
            if recognized != as_text:
                case["forms"][name]["recognized"] = recognized
    lines = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in cases)
    (HERE / "cases.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
