// Which documents are for training, for validation and for testing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lockstep {

enum class Split : std::uint8_t { kTrain, kValid, kTest };
inline constexpr std::size_t kSplits = 3;
inline constexpr std::array<std::string_view, kSplits> kSplitNames = {"train", "valid", "test"};

// One for each split, adding up to 1.
using Shares = std::array<double, kSplits>;

// Throws Error(kUsage) for a share outside [0, 1] and for a sum that is not 1. Missing ones are 0.
[[nodiscard]] Shares checked_shares(const std::vector<double>& split);

// How many splits have a share.
[[nodiscard]] std::size_t active_splits(const Shares& shares);

// A hash of which document it is: the name of its file and the byte where it begins.
[[nodiscard]] std::uint64_t document_hash(std::string_view file_name, std::uint64_t begin, std::uint64_t seed);

// The split of a document by its hash alone: right on average over many documents.
[[nodiscard]] Split split_by_hash(std::uint64_t hash, const Shares& shares);

struct SizedDocument {
  std::uint64_t hash = 0;
  std::uint64_t size = 0;
};

// Splits documents that are all known, so that the shares hold as well as possible and no split with a share stays
// empty: in the order of the hashes, the first part of the bytes is train, and so on; a split that got nothing takes
// the smallest document of the split that has most. Needs at least as many documents as active splits.
[[nodiscard]] std::vector<Split> assign_splits(const std::vector<SizedDocument>& documents, const Shares& shares);

// Where one document of `size` is cut for the splits: part s is [cuts[s], cuts[s + 1]), empty only for a share of 0.
// Needs size >= active_splits(shares).
[[nodiscard]] std::array<std::uint64_t, kSplits + 1> cuts_by_position(std::uint64_t size, const Shares& shares);

}  // namespace lockstep
