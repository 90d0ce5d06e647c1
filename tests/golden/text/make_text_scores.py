#!/usr/bin/env python3
"""Writes text_scores.json: pairs of texts and how alike sacrebleu, nltk and rouge_score find them.

    python3 -m venv venv && venv/bin/pip install sacrebleu==2.6.0 nltk==3.10.4 rouge_score==0.1.2
    venv/bin/python tests/golden/text/make_text_scores.py

"pairs": of each its words in both tokenizers, BLEU of a corpus of that pair alone, nltk's sentence_bleu() of characters (as LLaMA-Factory
calls it), ROUGE. "corpora": BLEU of stretches of the pairs. Scores are percentages. rouge_score's own tokenizer drops Chinese, Japanese
and Korean; ours, which keeps each character as a word, is given to it instead, and agrees with its own wherever there are none.
"""

import json
import pathlib
import random
import re
import warnings

import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score import rouge_scorer, tokenize
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

CJK = r"[\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]"

WRITTEN = [
    ("", ""), ("", "a word"), ("a word", ""), ("   ", "\n\t"), ("word", "word"), ("word", "other"), ("a", "a"), ("a b", "a b"), ("a b c", "a b c"),
    ("a b c d", "a b c d"), ("  a b c d\n", "a b c d"), ("\u3000\u00a0x\u2028\x1f\x85", "x"), ("x\u200b", "x"),
    ("the the the the the the the", "the cat is on the mat"), ("the cat is on the mat", "the the the the the the the"),
    ("It is a guide to action which ensures that the military always obeys the commands of the party",
     "It is a guide to action that ensures that the military will forever heed Party commands"),
    ("the gunman kill police", "police killed the gunman"), ("a b c x y z", "z a y b x c"),
    ("Tokens: $1,000.50 (net), 3-4% of it; 5.", "Tokens: $1,000.50 (net), 3 - 4 % of it; 5 ."),
    ("..,,. .5 5. 5,, a.b c,d 1.2.3 -1 1--2 1-a", "..,, .5 5. 5, a.b c,d 1.2.3 -1 1--2 a-1"),
    ("&quot;Tom &amp; Jerry&quot; &lt;3 &amp;lt; &gt;", "\"Tom & Jerry\" <3 &lt; >"), ("a <skipped>b <<skipped>skipped> c-\nd e\nf", "a b c d e f"),
    ("don't 'quote' it's_ok a`b [c] {d} ~e ^f \\g |h @i #j", "don't quote its ok a b c d e f g h i j"),
    ("int main() { return x->y[3] + 0x1F; }", "int main() { return x->y[4] + 0x1F; }"),
    ("caf\u00e9 na\u00efve \u00c9COLE", "cafe naive ecole"), ("\u212aelvin \u0130stanbul x\u0130y", "kelvin istanbul xiy"),
    ("\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440.", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!"),
    ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002", "\u4eca\u5929\u7684\u5929\u6c14\u5f88\u597d\uff01"),
    ("\u4f60\u597d world 2024\u5e74", "\u4f60\u597d World 2023\u5e74"), ("\u6771\u4eac\u30bf\u30ef\u30fc\u306f\u9ad8\u3044\u30fb\u3005", "\u6771\u4eac\u306e\u30bf\u30ef\u30fc\u3005"),
    ("\ud55c\uad6d\uc5b4 \ubb38\uc7a5", "\ud55c\uad6d\ub9d0 \ubb38\uc7a5"), ("\U0001f680\U0001f680 go \U00020000", "\U0001f680 go go \U00020000"),
    ("e\u0301 \u00e9", "\u00e9 e\u0301"), ("one\u00a0two\u3000three\u2003four", "one two three four"), ("x" * 40, "x" * 30), ("ab" * 20, "ba" * 20),
]
SNIPPETS = ["the", "cat", "sat", "on", "a", "mat", ".", ",", "3.5", "1,000", "x-1", "2-3", "\u4f60", "\u597d", "caf\u00e9", " ", "\n", "-\n", "&amp;",
            "(", ")", "!", "\u00a0", "\U0001f680", "The", "'s", "\u3002", "-", "5"]


def random_pairs(count):
    rng = random.Random(7)
    pairs = []
    for _ in range(count):
        reference = [rng.choice(SNIPPETS) for _ in range(rng.randint(1, 14))]
        prediction = [rng.choice(SNIPPETS) if rng.random() < 0.25 else word for word in reference if rng.random() < 0.9]
        space = rng.choice([" ", " ", ""])
        pairs.append((space.join(prediction), space.join(reference)))
    return pairs


class OurTokenizer:
    def tokenize(self, text):
        words = re.findall(rf"[a-z0-9]+|{CJK}", text.lower())
        assert re.search(CJK, text) or words == tokenize.tokenize(text, None)
        return words


def bleu(pairs):
    return sacrebleu.corpus_bleu([p for p, _ in pairs], [[r for _, r in pairs]]).score


def case_of(prediction, reference):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        characters = sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3)
    rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=OurTokenizer()).score(reference, prediction)
    return {
        "prediction": prediction, "reference": reference, "exact": prediction.strip() == reference.strip(),
        "bleu_words": Tokenizer13a()(prediction.rstrip()).split(" ") if prediction.strip() else [],
        "bleu": bleu([(prediction, reference)]), "bleu_4": 100 * characters, "rouge_words": OurTokenizer().tokenize(prediction),
        "rouge_1": 100 * rouge["rouge1"].fmeasure, "rouge_2": 100 * rouge["rouge2"].fmeasure, "rouge_l": 100 * rouge["rougeL"].fmeasure,
    }


pairs = WRITTEN + random_pairs(40)
stretches = [(0, len(pairs)), (0, 4), (4, 16), (15, 24), (26, 32), (len(WRITTEN), len(pairs))]
corpora = [{"begin": begin, "end": end, "bleu": bleu(pairs[begin:end])} for begin, end in stretches]
lines = ",\n".join(json.dumps(case_of(*pair)) for pair in pairs)
target = pathlib.Path(__file__).parent / "text_scores.json"
target.write_text(f'{{"pairs": [\n{lines}\n],\n"corpora": {json.dumps(corpora)}}}\n', encoding="utf-8")
