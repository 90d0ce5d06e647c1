// What a row of a batch can hold: the samples of a dataset.
//
// kText: sample j covers tokens [j*T, j*T + T + 1): T inputs and, one further, T targets. There are (tokens - 1) / T of
// them. kChat: sample j is conversation j: all its tokens but the last are inputs, and of those one further the trained
// ones are targets. kPairs: sample j is conversations 2 j and 2 j + 1, the better answer first.
//
// Packed, a sample of kChat or kPairs is several of these, in as few samples of up to T inputs as a best fit in
// decreasing order of length finds (Johnson 1973): a function of the lengths alone. Nothing attends to another
// conversation of its sample.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/hash.h"
#include "data/dataset.h"

namespace lockstep {

class Samples {
 public:
  // `dataset` outlives it; `packed` says nothing of text. Throws Error(kUsage) when the dataset is shorter than one
  // sample, or a conversation longer than sequence + 1 tokens; Error(kCorrupt) for conversations that cannot be.
  Samples(Dataset& dataset, std::int64_t sequence, bool packed);

  [[nodiscard]] std::uint64_t count() const { return count_; }
  // Of one sample.
  [[nodiscard]] std::int64_t inputs(std::uint64_t sample) const;
  [[nodiscard]] std::int64_t targets(std::uint64_t sample) const;
  [[nodiscard]] std::int64_t pairs(std::uint64_t sample) const;  // 0 but of kPairs
  // kChat, kPairs: the inputs of each of its conversations, in order, are appended. Nothing of kText.
  void append_lengths(std::uint64_t sample, std::vector<std::int64_t>& lengths) const;

  // Fills the first inputs(sample) elements of a row, targets that are not trained on with -1. Returns the hash of the
  // sample's tokens as little-endian int32.
  Hash128 read(std::uint64_t sample, std::span<std::int32_t> inputs, std::span<std::int32_t> targets);

 private:
  // The conversations of a sample.
  [[nodiscard]] std::span<const std::uint64_t> conversations_of(std::uint64_t sample) const;
  [[nodiscard]] std::int64_t length(std::uint64_t conversation) const;  // of its inputs
  void check_conversations() const;
  void one_in_each();
  void pack();
  void read_conversation(std::uint64_t conversation, std::span<std::int32_t> inputs, std::span<std::int32_t> targets);

  Dataset& dataset_;
  std::int64_t sequence_;
  std::uint64_t together_ = 1;  // conversations that are not parted
  std::uint64_t count_ = 0;
  // Of kChat and kPairs, empty of kText:
  std::vector<std::uint64_t> begins_;   // of each conversation in the stream, and the stream's end
  std::vector<std::uint32_t> targets_;  // of each conversation
  std::vector<std::uint64_t> members_;  // conversations, sample after sample
  std::vector<std::uint64_t> firsts_;   // of each sample in members_, and their number
  std::vector<std::int32_t> tokens_;    // of what is read
  std::vector<std::uint8_t> trained_;
};

}  // namespace lockstep
