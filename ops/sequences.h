// Rows that fall into sequences, of one length or of many.
#pragma once

#include <cstdint>
#include <numeric>
#include <string_view>

#include "base/error.h"
#include "ops/functions.h"

namespace lockstep {

// `batch` sequences of `length` rows from row `begin` on; `index` counts what a call is given.
struct SequenceRows {
  std::int64_t begin = 0;
  std::int64_t batch = 1;
  std::int64_t length = 0;
  std::uint64_t index = 0;
};

// Gives `call` all rows at once, as sequences of `length`, or one sequence after another where `lengths` has them.
// Throws Error(kUsage) in the name of `op` where they are not the rows of a tensor.
template <typename Call>
void for_each_sequence(std::string_view op, std::int64_t rows, std::int64_t length, SequenceLengths lengths,
                       const Call& call) {
  if (lengths.empty()) {
    call(SequenceRows{0, length > 0 ? rows / length : 0, length, 0});
    return;
  }
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  require(total == rows, "{}: sequences of {} rows in all, the tensor has {}", op, total, rows);
  SequenceRows sequence;
  for (const std::int64_t of_one : lengths) {
    require(of_one > 0, "{}: a sequence of {} rows, expected 1 or more", op, of_one);
    sequence.length = of_one;
    call(sequence);
    sequence.begin += of_one;
    ++sequence.index;
  }
}

}  // namespace lockstep
