// The digest of a training state: one number for weights and optimizer moments together.
//
// It depends on the parameters' names, shapes and values alone, not on their order, on padding, on ranks or on how
// files were sharded. Each parameter's master weights and moments are cut into chunks of 16 elements; every chunk is
// hashed with its parameter, kind and number as the seed, and the hashes are added modulo 2^128. Ranks digest the
// ranges they hold and their sums are added. docs/checkpoint-format.md gives the exact definition.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/hash.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

enum class StateKind : std::uint8_t { kMaster, kExpAvg, kExpAvgSq };

// Not thread-safe; cheap to make.
class StateDigest {
 public:
  // `layout` must outlive the digest.
  explicit StateDigest(const ParameterLayout& layout);

  // Adds elements [begin, begin + values.size()) of one flat buffer; begin and the size are multiples of 16. Padding is
  // skipped. Every element of every kind is to be added once, in any order, by any rank.
  void add(StateKind kind, std::uint64_t begin, std::span<const float> values);
  // Adds elements [first, first + values.size()) of one parameter; first is a multiple of 16, and so is the size unless
  // it reaches the parameter's end.
  void add_parameter(StateKind kind, std::size_t index, std::uint64_t first, std::span<const float> values);

  // What was added here so far: sums of several ranks are combined by combine().
  [[nodiscard]] Hash128 sum() const { return sum_; }
  [[nodiscard]] static Hash128 combine(const Hash128& a, const Hash128& b);
  // The digest, given the sum over all ranks.
  [[nodiscard]] static Hash128 finish(const ParameterLayout& layout, const Hash128& sum);

 private:
  const ParameterLayout* layout_;
  std::vector<std::uint64_t> keys_;  // three a parameter
  Hash128 sum_;
};

// The digest of a state that one process holds whole; each span has layout.total() elements.
struct FlatState {
  std::span<const float> master;
  std::span<const float> exp_avg;
  std::span<const float> exp_avg_sq;
};
[[nodiscard]] Hash128 digest_of(const ParameterLayout& layout, const FlatState& state);

}  // namespace lockstep
