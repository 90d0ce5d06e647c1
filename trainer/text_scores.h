// How much a text is like another: the scores that answers of language models are compared by, in the definitions of
// the Python packages that people use, to the last digits (tests/golden/text/make_text_scores.py).
//
// Texts are UTF-8; a byte that is not counts as a character of its own. White space is what Python's str.split() takes
// for it. Scores are percentages. Pure functions, for any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

struct TextPair {
  std::string prediction;
  std::string reference;
};

// The same but for white space at both ends.
[[nodiscard]] bool is_exact_match(const TextPair& pair);

// BLEU of a corpus (Papineni et al. 2002, sections 2.1 to 2.3): the geometric mean of the precisions of n-grams up to 4
// words, all texts together, times the brevity penalty. As sacrebleu 2 (Post 2018) computes it unless told otherwise:
// words as bleu_words(), precisions of 0 smoothed with its "exp".
[[nodiscard]] double corpus_bleu(std::span<const TextPair> pairs);
// sacrebleu's tokenizer "13a", which is that of NIST's mteval-v13a.pl. Text without spaces is one word.
[[nodiscard]] std::vector<std::string> bleu_words(std::string_view text);

// BLEU-4 of one text over its characters: nltk's sentence_bleu() with smoothing method 3 (Chen, Cherry 2014), given
// characters for words. LLaMA-Factory's "bleu-4" is the mean of this.
[[nodiscard]] double character_bleu(const TextPair& pair);

// F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004, sections 2 and 3) as the package rouge_score has them without its
// stemmer, over rouge_words().
struct RougeScores {
  double rouge_1 = 0;
  double rouge_2 = 0;
  double rouge_l = 0;
};
[[nodiscard]] RougeScores rouge(const TextPair& pair);
// Stretches of the letters a to z, in lower case, and of digits, as rouge_score has them; beyond it Chinese, Japanese
// and Korean characters, each a word of its own. Everything else parts words.
[[nodiscard]] std::vector<std::string> rouge_words(std::string_view text);

// Of at least one pair: the share of exact matches, corpus_bleu(), and the means of the other scores.
struct TextScores {
  double exact_match = 0;
  double bleu = 0;
  double bleu_4 = 0;  // character_bleu()
  RougeScores rouge;
};
[[nodiscard]] TextScores score_texts(std::span<const TextPair> pairs);

}  // namespace lockstep
