#include "ops/cuda/row_groups.h"

#include <algorithm>
#include <utility>

namespace lockstep::cuda {

// A counting sort.
void group_rows(std::span<const std::int32_t> tokens, std::int64_t vocabulary, RowGroups& groups) {
  thread_local std::vector<std::int32_t> next;  // where the next row of a token goes
  next.assign(static_cast<std::size_t>(vocabulary) + 1, 0);
  for (const std::int32_t token : tokens) {
    ++next[static_cast<std::size_t>(token) + 1];
  }
  groups.pieces.clear();
  for (std::size_t token = 0; token < static_cast<std::size_t>(vocabulary); ++token) {
    next[token + 1] += next[token];
  }
  for (const bool several : {true, false}) {
    for (std::size_t token = 0; token < static_cast<std::size_t>(vocabulary); ++token) {
      const std::int32_t count = next[token + 1] - next[token];
      if ((count > RowGroups::kMostRows) != several) {
        continue;
      }
      std::int32_t pieces = (count + RowGroups::kMostRows - 1) / RowGroups::kMostRows;
      for (std::int32_t done = 0; done < count; done += RowGroups::kMostRows) {
        groups.pieces.push_back({next[token] + done, std::min(RowGroups::kMostRows, count - done),
                                 static_cast<std::int32_t>(token), std::exchange(pieces, 0)});
      }
    }
  }
  groups.rows.resize(tokens.size());
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    groups.rows[static_cast<std::size_t>(next[static_cast<std::size_t>(tokens[row])]++)] =
        static_cast<std::int32_t>(row);
  }
}

}  // namespace lockstep::cuda
