// What a row of a batch can hold: the samples of a dataset.
//
// kText: sample j covers tokens [j*T, j*T + T + 1): T inputs and, one further, T targets. There are (tokens - 1) / T of
// them. kChat: sample j is conversation j: all its tokens but the last are inputs, and of those one further the trained
// ones are targets.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/hash.h"
#include "data/dataset.h"

namespace lockstep {

class Samples {
 public:
  // `dataset` outlives it. Throws Error(kUsage) when the dataset is shorter than one sample, or a conversation longer
  // than sequence + 1 tokens; Error(kCorrupt) for conversations that cannot be.
  Samples(Dataset& dataset, std::int64_t sequence);

  [[nodiscard]] std::uint64_t count() const { return count_; }
  // Of one sample.
  [[nodiscard]] std::int64_t inputs(std::uint64_t sample) const;
  [[nodiscard]] std::int64_t targets(std::uint64_t sample) const;

  // Fills the first inputs(sample) elements of a row, targets that are not trained on with -1. Returns the hash of the
  // sample's tokens as little-endian int32.
  Hash128 read(std::uint64_t sample, std::span<std::int32_t> inputs, std::span<std::int32_t> targets);

 private:
  Dataset& dataset_;
  std::int64_t sequence_;
  std::uint64_t count_ = 0;
  std::vector<std::uint64_t> begins_;   // kChat: of each conversation in the stream, and the stream's end
  std::vector<std::uint32_t> targets_;  // kChat
  std::vector<std::int32_t> tokens_;    // of the sample that is read
  std::vector<std::uint8_t> trained_;
};

}  // namespace lockstep
