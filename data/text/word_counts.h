// WordCounts counts the words of a corpus: what a BPE vocabulary is trained from.
//
// Words are the pieces that the GPT-2 pattern cuts a text into; a piece longer than kMaxWordBytes is counted in parts
// of that length. Tables add up: count the parts of a corpus anywhere, then merge(). Below the limit the counts are
// exact, and the order of add() and merge() does not matter. A table that outgrows its limit forgets its rarest words
// (ties: the greater byte string goes first) until it is half full; from then on the counts depend on the order of the
// calls. For the same counts on any number of ranks, cut the corpus into parts that do not depend on them, count each
// part in a table of its own and merge the tables in the order of the parts.
//
// Not for sharing between threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lockstep {

struct WordCountLimits {
  std::size_t max_bytes = std::size_t{256} << 20;  // words with their bookkeeping (64 bytes each)
};

class WordCounts {
 public:
  static constexpr std::size_t kMaxWordBytes = 1024;

  explicit WordCounts(WordCountLimits limits = {});

  // Counts the words of a document. `text` must be whole: words are not joined across calls.
  void add(std::string_view text);
  void add_word(std::string_view word, std::uint64_t count);
  void merge(const WordCounts& other);

  [[nodiscard]] std::size_t distinct() const { return counts_.size(); }
  [[nodiscard]] std::uint64_t count_of(std::string_view word) const;
  // Occurrences of words that were forgotten.
  [[nodiscard]] std::uint64_t forgotten() const { return forgotten_; }
  // All words and their counts, in byte order. The views live until the table changes.
  [[nodiscard]] std::vector<std::pair<std::string_view, std::uint64_t>> sorted() const;

  // The table as bytes, to be sent or stored: equal tables give equal bytes.
  [[nodiscard]] std::string serialize() const;
  // Throws Error(kCorrupt), which begins with `name`, unless `bytes` come from serialize().
  [[nodiscard]] static WordCounts deserialize(std::string_view bytes, std::string_view name,
                                              WordCountLimits limits = {});

 private:
  struct WordHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view word) const { return std::hash<std::string_view>{}(word); }
  };

  void forget_rare_words();

  WordCountLimits limits_;
  std::unordered_map<std::string, std::uint64_t, WordHash, std::equal_to<>> counts_;
  std::size_t bytes_ = 0;
  std::uint64_t forgotten_ = 0;
};

}  // namespace lockstep
