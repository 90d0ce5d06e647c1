// Rows that fall into sequences, of one length or of many.
#pragma once

#include <cstdint>
#include <numeric>
#include <string_view>

#include "base/error.h"
#include "base/random.h"
#include "ops/backend.h"

namespace lockstep {

// `batch` sequences of `length` rows from row `begin` on; `index` counts what a call is given.
struct SequenceRows {
  std::int64_t begin = 0;
  std::int64_t batch = 1;
  std::int64_t length = 0;
  std::uint64_t index = 0;
};

// Throws Error(kUsage) in the name of `op` where `lengths`, which are not empty, are not those of `rows` rows.
inline void check_sequences(std::string_view op, std::int64_t rows, SequenceLengths lengths) {
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  require(total == rows, "{}: sequences of {} rows in all, the tensor has {}", op, total, rows);
  for (const std::int64_t length : lengths) {
    require(length > 0, "{}: a sequence of {} rows, expected 1 or more", op, length);
  }
}

// Gives `call` all rows at once, as sequences of `length`, or one sequence after another where `lengths` has them.
// Throws what check_sequences() throws.
template <typename Call>
void for_each_sequence(std::string_view op, std::int64_t rows, std::int64_t length, SequenceLengths lengths,
                       const Call& call) {
  if (lengths.empty()) {
    call(SequenceRows{0, length > 0 ? rows / length : 0, length, 0});
    return;
  }
  check_sequences(op, rows, lengths);
  SequenceRows sequence;
  for (const std::int64_t of_one : lengths) {
    sequence.length = of_one;
    call(sequence);
    sequence.begin += of_one;
    ++sequence.index;
  }
}

// The stream of random numbers of one of several sequences.
[[nodiscard]] constexpr RandomKey key_of_sequence(RandomKey key, std::uint64_t index) {
  const std::uint64_t mixed = mix64((std::uint64_t{key.k1} << 32 | key.k0) + index);
  return index == 0 ? key : RandomKey{static_cast<std::uint32_t>(mixed), static_cast<std::uint32_t>(mixed >> 32)};
}

// Of attention over sequences, what concerns one of them, as a call of its own.
[[nodiscard]] AttentionForward attention_of_sequence(const AttentionForward& all, const SequenceRows& rows);
[[nodiscard]] AttentionBackward attention_of_sequence(const AttentionBackward& all, const SequenceRows& rows);
// Gives `call` all of it, or one sequence after another where there are several.
template <typename Attention, typename Call>
void for_each_sequence(const Attention& attention, const Call& call) {
  if (attention.lengths.empty()) {
    call(attention);
    return;
  }
  for_each_sequence("self_attention", attention.shape.query_length, 0, attention.lengths,
                    [&](const SequenceRows& rows) { call(attention_of_sequence(attention, rows)); });
}

}  // namespace lockstep
