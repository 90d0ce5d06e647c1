#include "data/text/word_counts.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "data/text/pattern_scanner.h"
#include "data/text/unicode.h"

namespace lockstep {
namespace {

constexpr std::size_t kBookkeepingBytes = 64;
constexpr std::string_view kMagic = "LSWC0001";
constexpr std::uint64_t kMaxCount = std::uint64_t{1} << 48;

std::size_t bytes_of(std::string_view word) { return word.size() + kBookkeepingBytes; }

template <typename T>
void put(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out.push_back(static_cast<char>(static_cast<unsigned char>(value >> (8 * i))));
  }
}

// Takes values from the front of a serialised table.
class Input {
 public:
  Input(std::string_view bytes, std::string_view name) : bytes_(bytes), name_(name) {}

  [[nodiscard]] std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_) {
      wrong(fmt::format("ends at byte {}, {} more were expected", bytes_.size(), count - (bytes_.size() - at_)));
    }
    const std::string_view taken = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += taken.size();
    return taken;
  }
  template <typename T>
  [[nodiscard]] T number() {
    const std::string_view taken = take(sizeof(T));
    std::uint64_t value = 0;
    for (std::size_t i = sizeof(T); i-- > 0;) {
      value = value << 8 | static_cast<unsigned char>(taken[i]);
    }
    return static_cast<T>(value);
  }
  [[nodiscard]] std::size_t left() const { return bytes_.size() - at_; }
  [[noreturn]] void wrong(const std::string& what) const {
    fail(ErrorCode::kCorrupt, "{}: not a table of word counts: {}", name_, what);
  }

 private:
  std::string_view bytes_;
  std::string_view name_;
  std::size_t at_ = 0;
};

}  // namespace

WordCounts::WordCounts(WordCountLimits limits) : limits_(limits) {}

void WordCounts::add(std::string_view text) {
  const auto add_piece = [this](std::string_view piece) {
    for (std::size_t begin = 0; begin < piece.size(); begin += kMaxWordBytes) {
      add_word(piece.substr(begin, kMaxWordBytes), 1);
    }
  };
  split_by_validity(
      text,
      [&](std::string_view valid) {
        for (std::size_t begin = 0; begin < valid.size();) {
          const std::size_t end = piece_end(KnownPattern::kGpt2, valid, begin);
          add_piece(valid.substr(begin, end - begin));
          begin = end;
        }
      },
      add_piece);
}

void WordCounts::add_word(std::string_view word, std::uint64_t count) {
  if (const auto known = counts_.find(word); known != counts_.end()) {
    known->second += count;
    return;
  }
  counts_.emplace(word, count);
  bytes_ += bytes_of(word);
  if (bytes_ > limits_.max_bytes) {
    forget_rare_words();
  }
}

void WordCounts::merge(const WordCounts& other) {
  // In byte order: should the table outgrow its limit on the way, what it forgets then depends on the two tables alone.
  for (const auto& [word, count] : other.sorted()) {
    add_word(word, count);
  }
  forgotten_ += other.forgotten_;
}

std::uint64_t WordCounts::count_of(std::string_view word) const {
  const auto known = counts_.find(word);
  return known == counts_.end() ? 0 : known->second;
}

std::vector<std::pair<std::string_view, std::uint64_t>> WordCounts::sorted() const {
  std::vector<std::pair<std::string_view, std::uint64_t>> all(counts_.begin(), counts_.end());
  std::sort(all.begin(), all.end());
  return all;
}

void WordCounts::forget_rare_words() {
  auto words = sorted();
  std::stable_sort(words.begin(), words.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::size_t kept_bytes = 0;
  auto first_forgotten = words.begin();
  while (first_forgotten != words.end() && kept_bytes + bytes_of(first_forgotten->first) <= limits_.max_bytes / 2) {
    kept_bytes += bytes_of(first_forgotten->first);
    ++first_forgotten;
  }
  for (auto word = first_forgotten; word != words.end(); ++word) {
    forgotten_ += word->second;
    counts_.erase(counts_.find(word->first));
  }
  bytes_ = kept_bytes;
}

std::string WordCounts::serialize() const {
  std::string out(kMagic);
  put(out, forgotten_);
  put(out, std::uint64_t{counts_.size()});
  for (const auto& [word, count] : sorted()) {
    put(out, static_cast<std::uint32_t>(word.size()));
    put(out, count);
    out += word;
  }
  return out;
}

WordCounts WordCounts::deserialize(std::string_view bytes, std::string_view name, WordCountLimits limits) {
  Input in(bytes, name);
  if (in.take(std::min(bytes.size(), kMagic.size())) != kMagic) {
    in.wrong(fmt::format("it begins with {}, expected \"{}\"", in_quotes(bytes.substr(0, kMagic.size())), kMagic));
  }
  WordCounts counts(limits);
  const auto forgotten = in.number<std::uint64_t>();
  const auto words = in.number<std::uint64_t>();
  std::string_view previous;
  for (std::uint64_t i = 0; i < words; ++i) {
    const auto length = in.number<std::uint32_t>();
    const auto count = in.number<std::uint64_t>();
    const std::string_view word = in.take(length);
    if (length == 0 || length > kMaxWordBytes || count == 0 || count > kMaxCount || word <= previous) {
      in.wrong(
          fmt::format("word {} of {} has {} bytes and the count {}, expected 1 to {} bytes, ascending, and 1 to {}", i,
                      words, length, count, kMaxWordBytes, kMaxCount));
    }
    counts.add_word(word, count);
    previous = word;
  }
  if (in.left() != 0) {
    in.wrong(fmt::format("{} bytes follow its end", in.left()));
  }
  counts.forgotten_ += forgotten;
  return counts;
}

}  // namespace lockstep
