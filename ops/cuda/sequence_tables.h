// Where kernels find the sequences of a batch that differ in length, so that one launch serves all of them. A model
// asks for the same tables layer after layer: they are uploaded when the lengths change. Recordings, whose batches are
// all alike, have none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "ops/backend.h"
#include "ops/cuda/id_upload.h"

namespace lockstep::cuda {

// A block's part of the rows: some of those of one sequence.
struct alignas(16) SequenceTile {
  std::int32_t begin = 0;      // the sequence's first row, among all
  std::int32_t length = 0;     // its rows
  std::int32_t first_row = 0;  // the tile's first, from the sequence's
  std::int32_t index = 0;      // of the sequence
};
static_assert(sizeof(SequenceTile) == 4 * sizeof(std::int32_t));

// On the device, until other lengths are asked for.
struct SequenceTiles {
  const SequenceTile* data = nullptr;
  std::size_t count = 0;
};

class SequenceTables {
 public:
  explicit SequenceTables(Recorder& recorder) : recorder_(recorder) {}

  // Both throw Error(kUsage) within a recording.
  // Which tiles have the most to do, and so go first: with a causal mask, those of late queries and of early keys.
  enum class Of : std::uint8_t { kQueries, kKeys };
  // All tiles of `rows` rows, the last of a sequence being shorter.
  [[nodiscard]] SequenceTiles tiles(SequenceLengths lengths, int rows, Of of);
  // Of each row of all sequences, its place in its own.
  [[nodiscard]] const std::int32_t* places(SequenceLengths lengths);

 private:
  struct Table {
    explicit Table(Recorder& recorder) : upload(recorder) {}
    IdUpload upload;
    std::vector<std::int64_t> lengths;
    std::size_t count = 0;  // of numbers
    const std::int32_t* data = nullptr;
  };
  enum class Kind : std::uint8_t { kQueryTiles, kKeyTiles, kPlaces };
  [[nodiscard]] const Table& table(Kind kind, SequenceLengths lengths, int rows);
  [[nodiscard]] static std::vector<std::int32_t> numbers_of(Kind kind, SequenceLengths lengths, int rows);

  Recorder& recorder_;
  std::map<std::pair<Kind, int>, Table> tables_;
};

}  // namespace lockstep::cuda
