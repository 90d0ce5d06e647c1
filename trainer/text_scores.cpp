#include "trainer/text_scores.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <map>
#include <utility>

#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::size_t kOrders = 4;  // of BLEU
constexpr double kPercent = 100;

using Words = std::vector<std::string>;

// Calls f(value, bytes) for each character; a byte that is no UTF-8 is U+FFFD.
template <typename F>
void for_each_character(std::string_view text, const F& f) {
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint point = decode_utf8(text, at);
    const std::size_t length = std::max(point.length, 1U);
    f(point.length == 0 ? U'\uFFFD' : point.value, text.substr(at, length));
    at += length;
  }
}

Words characters_of(std::string_view text) {
  Words characters;
  for_each_character(text, [&](char32_t, std::string_view bytes) { characters.emplace_back(bytes); });
  return characters;
}

// Unicode's, and the four separators of ASCII.
bool is_space(char32_t value) { return class_of(value) == CharClass::kSpace || (value >= 0x1c && value <= 0x1f); }

Words split_at_spaces(std::string_view text) {
  Words words;
  bool is_inside = false;
  for_each_character(text, [&](char32_t value, std::string_view bytes) {
    if (is_space(value)) {
      is_inside = false;
      return;
    }
    if (!std::exchange(is_inside, true)) {
      words.emplace_back();
    }
    words.back() += bytes;
  });
  return words;
}

std::string_view trimmed_end(std::string_view text) {
  std::size_t end = 0;
  for_each_character(text, [&](char32_t value, std::string_view bytes) {
    if (!is_space(value)) {
      end = static_cast<std::size_t>(bytes.data() - text.data()) + bytes.size();
    }
  });
  return text.substr(0, end);
}

std::string_view trimmed(std::string_view text) {
  text = trimmed_end(text);
  std::size_t begin = text.size();
  for_each_character(text, [&](char32_t value, std::string_view bytes) {
    if (!is_space(value)) {
      begin = std::min(begin, static_cast<std::size_t>(bytes.data() - text.data()));
    }
  });
  return text.substr(begin);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_period_or_comma(char c) { return c == '.' || c == ','; }
bool is_dash(char c) { return c == '-'; }
bool is_no_digit(char c) { return !is_digit(c); }

// Puts spaces around the ASCII punctuation that always stands alone: all but ' , - and the period.
std::string with_symbols_apart(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const bool is_symbol = (c >= ' ' && c <= '&') || (c >= '(' && c <= '+') || c == '/' || (c >= ':' && c <= '@') ||
                           (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
    result += is_symbol ? std::string{' ', c, ' '} : std::string{c};
  }
  return result;
}

// Two neighbours, of which one is set apart. Bytes do for characters: those beyond ASCII are only ever no digits.
struct PairRule {
  bool (*first)(char);
  bool (*second)(char);
  bool sets_first_apart;
};

std::string with_pairs_apart(std::string_view text, const PairRule& rule) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (i + 1 == text.size() || !rule.first(text[i]) || !rule.second(text[i + 1])) {
      result += text[i];
      continue;
    }
    const char a = text[i];
    const char b = text[++i];
    result += rule.sets_first_apart ? std::string{' ', a, ' ', b} : std::string{a, ' ', b, ' '};
  }
  return result;
}

struct InOrder {
  bool operator()(std::span<const std::string> a, std::span<const std::string> b) const {
    return std::ranges::lexicographical_compare(a, b);
  }
};
using Counts = std::map<std::span<const std::string>, std::int64_t, InOrder>;

Counts ngrams(const Words& words, std::size_t order) {
  Counts counts;
  for (std::size_t i = 0; i + order <= words.size(); ++i) {
    ++counts[std::span(words).subspan(i, order)];
  }
  return counts;
}

std::int64_t count_of(const Words& words, std::size_t order) {
  return static_cast<std::int64_t>(words.size() >= order ? words.size() - order + 1 : 0);
}

// N-grams of both, each as often as the text that has it less often has it.
std::int64_t common_ngrams(const Words& a, const Words& b, std::size_t order) {
  const Counts of_b = ngrams(b, order);
  std::int64_t common = 0;
  for (const auto& [ngram, count] : ngrams(a, order)) {
    const auto found = of_b.find(ngram);
    common += found == of_b.end() ? 0 : std::min(count, found->second);
  }
  return common;
}

// What BLEU needs to know of texts; adds up over them.
struct BleuCounts {
  std::array<std::int64_t, kOrders> common{};
  std::array<std::int64_t, kOrders> total{};  // of the predictions
  std::int64_t prediction_words = 0;
  std::int64_t reference_words = 0;

  void add(const Words& prediction, const Words& reference) {
    for (std::size_t i = 0; i < kOrders; ++i) {
      common[i] += common_ngrams(prediction, reference, i + 1);
      total[i] += count_of(prediction, i + 1);
    }
    prediction_words += count_of(prediction, 1);
    reference_words += count_of(reference, 1);
  }
};

// Precisions of 0 become 1/2, 1/4, ... of one n-gram's (Chen, Cherry 2014, section 3, method 3). At least one word is
// common.
double bleu_of(const BleuCounts& counts) {
  double log_sum = 0;
  double smoothing = 1;
  for (std::size_t i = 0; i < kOrders; ++i) {
    double common = static_cast<double>(counts.common[i]);
    if (counts.common[i] == 0) {
      smoothing *= 2;
      common = 1 / smoothing;
    }
    log_sum += std::log(common / static_cast<double>(std::max<std::int64_t>(counts.total[i], 1)));
  }
  const double ratio = static_cast<double>(counts.reference_words) / static_cast<double>(counts.prediction_words);
  return kPercent * std::exp(std::min(1 - ratio, 0.0) + log_sum / kOrders);
}

// Of 0 to 1.
double f1(std::int64_t common, std::int64_t of_prediction, std::int64_t of_reference) {
  const std::int64_t both = of_prediction + of_reference;
  return both == 0 ? 0 : 2 * static_cast<double>(common) / static_cast<double>(both);
}

// Words that stand in both texts in the same order (the longest common subsequence), row by row of the usual table.
std::int64_t common_subsequence(const Words& a, const Words& b) {
  std::vector<std::int64_t> row(b.size() + 1, 0);
  for (const std::string& word : a) {
    std::int64_t diagonal = 0;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::int64_t above = row[j + 1];
      row[j + 1] = word == b[j] ? diagonal + 1 : std::max(above, row[j]);
      diagonal = above;
    }
  }
  return row.back();
}

// Characters of scripts that are written without spaces, or whose words are short: kana, Han and Hangul.
bool is_cjk(char32_t value) {
  constexpr std::array<std::pair<char32_t, char32_t>, 9> kRanges = {{{0x3005, 0x3007},
                                                                     {0x3041, 0x3096},
                                                                     {0x30A1, 0x30FA},
                                                                     {0x30FC, 0x30FF},
                                                                     {0x3400, 0x4DBF},
                                                                     {0x4E00, 0x9FFF},
                                                                     {0xAC00, 0xD7A3},
                                                                     {0xF900, 0xFAFF},
                                                                     {0x20000, 0x3FFFF}}};
  return std::ranges::any_of(kRanges, [&](const auto& range) { return value >= range.first && value <= range.second; });
}

// The letter or digit of a word that Python's str.lower() begins the character's lower case with; 0: none. Two letters
// beyond ASCII have one: the Kelvin sign, and I with a dot above, whose dot becomes a character that is no letter.
char lower_case_letter(char32_t value) {
  if (value == U'\u212A') {
    return 'k';
  }
  if (value == U'\u0130') {
    return 'i';
  }
  if (value >= 'A' && value <= 'Z') {
    return static_cast<char>(value - 'A' + 'a');
  }
  const bool is_word = (value >= 'a' && value <= 'z') || (value >= '0' && value <= '9');
  return is_word ? static_cast<char>(value) : '\0';
}

}  // namespace

bool is_exact_match(const TextPair& pair) { return trimmed(pair.prediction) == trimmed(pair.reference); }

std::vector<std::string> bleu_words(std::string_view text) {
  std::string line(trimmed_end(text));
  replace_all(line, "<skipped>", "");
  replace_all(line, "-\n", "");
  replace_all(line, "\n", " ");
  for (const auto& [entity, character] : {std::pair{"&quot;", "\""}, {"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}}) {
    replace_all(line, entity, character);
  }
  line = with_symbols_apart(" " + line + " ");
  line = with_pairs_apart(line, {.first = is_no_digit, .second = is_period_or_comma, .sets_first_apart = false});
  line = with_pairs_apart(line, {.first = is_period_or_comma, .second = is_no_digit, .sets_first_apart = true});
  line = with_pairs_apart(line, {.first = is_digit, .second = is_dash, .sets_first_apart = false});
  return split_at_spaces(line);
}

double corpus_bleu(std::span<const TextPair> pairs) {
  BleuCounts counts;
  for (const TextPair& pair : pairs) {
    counts.add(bleu_words(pair.prediction), bleu_words(pair.reference));
  }
  const bool has_all_orders = counts.total.back() > 0;
  return counts.common.front() == 0 || !has_all_orders ? 0 : bleu_of(counts);
}

double character_bleu(const TextPair& pair) {
  BleuCounts counts;
  counts.add(characters_of(pair.prediction), characters_of(pair.reference));
  return counts.common.front() == 0 ? 0 : bleu_of(counts);
}

std::vector<std::string> rouge_words(std::string_view text) {
  std::vector<std::string> words;
  bool is_inside = false;
  for_each_character(text, [&](char32_t value, std::string_view bytes) {
    if (const char letter = lower_case_letter(value); letter != '\0') {
      if (!std::exchange(is_inside, value != U'\u0130')) {
        words.emplace_back();
      }
      words.back() += letter;
      return;
    }
    is_inside = false;
    if (is_cjk(value)) {
      words.emplace_back(bytes);
    }
  });
  return words;
}

RougeScores rouge(const TextPair& pair) {
  const Words prediction = rouge_words(pair.prediction);
  const Words reference = rouge_words(pair.reference);
  const auto of_ngrams = [&](std::size_t order) {
    return kPercent *
           f1(common_ngrams(prediction, reference, order), count_of(prediction, order), count_of(reference, order));
  };
  return {.rouge_1 = of_ngrams(1),
          .rouge_2 = of_ngrams(2),
          .rouge_l = kPercent *
                     f1(common_subsequence(prediction, reference), count_of(prediction, 1), count_of(reference, 1))};
}

TextScores score_texts(std::span<const TextPair> pairs) {
  assert(!pairs.empty());
  TextScores sums;
  for (const TextPair& pair : pairs) {
    sums.exact_match += is_exact_match(pair) ? kPercent : 0;
    sums.bleu_4 += character_bleu(pair);
    const RougeScores scores = rouge(pair);
    sums.rouge.rouge_1 += scores.rouge_1;
    sums.rouge.rouge_2 += scores.rouge_2;
    sums.rouge.rouge_l += scores.rouge_l;
  }
  const auto count = static_cast<double>(pairs.size());
  return {.exact_match = sums.exact_match / count,
          .bleu = corpus_bleu(pairs),
          .bleu_4 = sums.bleu_4 / count,
          .rouge = {sums.rouge.rouge_1 / count, sums.rouge.rouge_2 / count, sums.rouge.rouge_l / count}};
}

}  // namespace lockstep
