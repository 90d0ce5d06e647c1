// Counts of all pairs are kept while merging. A heap holds, for each pair, the count it had when it was put there and
// the words it was seen in; an entry whose count is out of date goes back with the present one when it comes up.
// Merging a pair looks only at its words, and there changes the counts of the pairs to its left and right.
#include "data/text/bpe_trainer.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "data/text/byte_alphabet.h"
#include "data/text/tokenizer_model.h"

namespace lockstep {
namespace {

constexpr std::string_view kEndOfText = "<|endoftext|>";
constexpr std::uint32_t kFirstVocabulary = 257;
constexpr std::uint32_t kProgressEvery = 128;

std::uint64_t pair_of(std::uint32_t left, std::uint32_t right) { return std::uint64_t{left} << 32 | right; }

// A pair and words that it occurs in. The best comes first: the highest count, then the smallest pair.
struct Candidate {
  std::int64_t count = 0;
  std::uint64_t pair = 0;
  std::vector<std::uint32_t> words;

  friend bool operator<(const Candidate& a, const Candidate& b) {
    return a.count != b.count ? a.count < b.count : a.pair > b.pair;
  }
};

class Trainer {
 public:
  Trainer(const WordCounts& counts, const BpeTrainerOptions& options) : options_(options) {
    definition_.name = fmt::format("bpe:{}", options.vocab_size);
    definition_.split_steps = {step_of(KnownPattern::kGpt2)};
    definition_.end_of_text = 0;
    definition_.tokens.push_back({std::string(kEndOfText), TokenKind::kSpecial});
    for (const std::uint8_t byte : bytes_in_character_order()) {
      byte_ids_[byte] = static_cast<std::uint32_t>(definition_.tokens.size());
      add_token(std::string(1, static_cast<char>(byte)));
    }
    take_words(counts);
    count_pairs();
  }

  TokenizerDefinition run() {
    const auto min_count = static_cast<std::int64_t>(std::max<std::uint64_t>(1, options_.min_count));
    while (definition_.tokens.size() < options_.vocab_size && !heap_.empty()) {
      Candidate best = pop();
      if (const std::int64_t count = *pair_counts_.find(best.pair); count != best.count) {
        best.count = count;
        push(std::move(best));
        continue;
      }
      if (best.count < min_count) {
        break;
      }
      merge(best);
    }
    keep_last_of_each_merge();
    return std::move(definition_);
  }

 private:
  struct Word {
    std::size_t begin = 0;  // in symbols_
    std::uint32_t length = 0;
    std::int64_t count = 0;
  };

  std::uint32_t add_token(std::string bytes) {
    const auto id = static_cast<std::uint32_t>(definition_.tokens.size());
    ids_.emplace(bytes, id);
    definition_.tokens.push_back({std::move(bytes), TokenKind::kNormal});
    if (options_.on_progress && id % kProgressEvery == 0) {
      options_.on_progress(id + 1);
    }
    return id;
  }

  void take_words(const WordCounts& counts) {
    for (const auto& [word, count] : counts.sorted()) {
      words_.push_back({symbols_.size(), static_cast<std::uint32_t>(word.size()), static_cast<std::int64_t>(count)});
      for (const char byte : word) {
        symbols_.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
      }
    }
  }

  void count_pairs() {
    for (std::uint32_t w = 0; w < words_.size(); ++w) {
      const Word& word = words_[w];
      for (std::size_t i = word.begin; i + 1 < word.begin + word.length; ++i) {
        change_count(pair_of(symbols_[i], symbols_[i + 1]), word.count, w);
      }
    }
    push_changed_pairs();
  }

  void change_count(std::uint64_t pair, std::int64_t by, std::uint32_t word) {
    pair_counts_[pair] += by;
    if (by > 0) {
      std::uint32_t& place = changed_places_[pair];
      if (place == 0) {
        changed_.push_back({0, pair, {}});
        place = static_cast<std::uint32_t>(changed_.size());
      }
      std::vector<std::uint32_t>& words = changed_[place - 1].words;
      if (words.empty() || words.back() != word) {
        words.push_back(word);
      }
    }
  }

  void push_changed_pairs() {
    for (Candidate& candidate : changed_) {
      candidate.count = *pair_counts_.find(candidate.pair);
      if (candidate.count > 0) {
        push(std::move(candidate));
      }
    }
    changed_.clear();
    changed_places_ = FlatMap<std::uint32_t>();
  }

  void merge(const Candidate& best) {
    const auto left = static_cast<std::uint32_t>(best.pair >> 32);
    const auto right = static_cast<std::uint32_t>(best.pair);
    std::string bytes = definition_.tokens[left].bytes + definition_.tokens[right].bytes;
    // Two ways of cutting the same string give one token.
    const auto known = ids_.find(bytes);
    const std::uint32_t result = known != ids_.end() ? known->second : add_token(std::move(bytes));
    definition_.merges.push_back({left, right, result});
    for (const std::uint32_t word : best.words) {
      merge_in_word(word, definition_.merges.back());
    }
    push_changed_pairs();
  }

  // Replaces the pair in one word, from the left, and counts what the neighbours now form.
  void merge_in_word(std::uint32_t index, const MergeRule& rule) {
    Word& word = words_[index];
    std::uint32_t* const symbols = symbols_.data() + word.begin;
    std::uint32_t out = 0;
    for (std::uint32_t in = 0; in < word.length; ++out) {
      if (in + 1 >= word.length || symbols[in] != rule.left || symbols[in + 1] != rule.right) {
        symbols[out] = symbols[in++];
        continue;
      }
      if (out > 0) {
        change_count(pair_of(symbols[out - 1], rule.left), -word.count, index);
        change_count(pair_of(symbols[out - 1], rule.result), word.count, index);
      }
      in += 2;
      if (in < word.length) {
        change_count(pair_of(rule.right, symbols[in]), -word.count, index);
        change_count(pair_of(rule.result, symbols[in]), word.count, index);
      }
      symbols[out] = rule.result;
    }
    word.length = out;
  }

  // A pair can come up twice, where its left or right token was made in two ways. The last place is its rank.
  void keep_last_of_each_merge() {
    std::unordered_set<std::uint64_t> seen;
    auto& merges = definition_.merges;
    const auto is_earlier = [&](const MergeRule& rule) { return !seen.insert(pair_of(rule.left, rule.right)).second; };
    std::reverse(merges.begin(), merges.end());
    merges.erase(std::remove_if(merges.begin(), merges.end(), is_earlier), merges.end());
    std::reverse(merges.begin(), merges.end());
  }

  void push(Candidate candidate) {
    heap_.push_back(std::move(candidate));
    std::push_heap(heap_.begin(), heap_.end());
  }
  Candidate pop() {
    std::pop_heap(heap_.begin(), heap_.end());
    Candidate best = std::move(heap_.back());
    heap_.pop_back();
    return best;
  }

  const BpeTrainerOptions& options_;
  TokenizerDefinition definition_;
  std::array<std::uint32_t, 256> byte_ids_{};
  std::unordered_map<std::string, std::uint32_t> ids_;
  std::vector<std::uint32_t> symbols_;
  std::vector<Word> words_;
  FlatMap<std::int64_t> pair_counts_;
  std::vector<Candidate> heap_;
  // Pairs that gained occurrences since the heap was last told, and where they stand in changed_, counted from 1.
  std::vector<Candidate> changed_;
  FlatMap<std::uint32_t> changed_places_;
};

}  // namespace

Tokenizer train_bpe(const WordCounts& counts, const BpeTrainerOptions& options) {
  require(options.vocab_size >= kFirstVocabulary && options.vocab_size <= kMaxVocabSize,
          "bpe: a vocabulary of {} tokens, expected {} (the bytes and {}) to {}", options.vocab_size, kFirstVocabulary,
          kEndOfText, kMaxVocabSize);
  require(counts.distinct() > 0, "bpe: no text to train a vocabulary from");
  TokenizerDefinition definition = Trainer(counts, options).run();
  const std::string name = definition.name;
  return Tokenizer(build_model(std::move(definition), name));
}

}  // namespace lockstep
