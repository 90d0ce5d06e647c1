// Which rows of a batch hold the same token, in an order that makes the sum over them parallel and still fixed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lockstep::cuda {

// Rows sorted by token, equal ones in their order, and cut into pieces: each holds at most kMostRows rows of one token.
// A token's first piece carries how many it has in all. Pieces of tokens that have several come before the others.
struct RowGroups {
  static constexpr std::int32_t kMostRows = 64;
  struct Piece {
    std::int32_t begin = 0;  // of `rows`
    std::int32_t count = 0;
    std::int32_t token = 0;
    std::int32_t pieces = 0;  // of this token, this one and those that follow; 0 when it is not the first
  };
  std::vector<std::int32_t> rows;
  std::vector<Piece> pieces;
};

// How many pieces there can be, and how many of tokens that have several.
[[nodiscard]] constexpr std::size_t most_pieces(std::size_t rows, std::int64_t vocabulary) {
  const auto tokens = static_cast<std::size_t>(vocabulary);
  return (rows < tokens ? rows : tokens) + rows / RowGroups::kMostRows;
}
[[nodiscard]] constexpr std::size_t most_pieces_of_several(std::size_t rows) {
  return 2 * (rows / RowGroups::kMostRows);
}

// Fills `groups`, whose memory is used again. `tokens` are below `vocabulary`.
void group_rows(std::span<const std::int32_t> tokens, std::int64_t vocabulary, RowGroups& groups);

}  // namespace lockstep::cuda
