#include "data/pack/split.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/hash.h"
#include "base/random.h"

namespace lockstep {
namespace {

// The split whose part of [0, 1) holds `position`: the first whose shares up to it exceed it.
std::size_t split_at(double position, const Shares& shares) {
  double upper = 0;
  std::size_t last_with_share = 0;
  for (std::size_t s = 0; s < kSplits; ++s) {
    upper += shares[s];
    if (shares[s] > 0) {
      last_with_share = s;
      if (position < upper) {
        return s;
      }
    }
  }
  return last_with_share;  // rounding left `position` at the very end
}

// Moves the smallest document of the fullest split to split `empty`.
void fill_empty_split(std::size_t empty, const std::vector<SizedDocument>& documents,
                      const std::vector<std::size_t>& order, std::vector<Split>& splits) {
  std::array<std::size_t, kSplits> counts = {};
  for (const Split split : splits) {
    ++counts[static_cast<std::size_t>(split)];
  }
  const auto fullest = static_cast<Split>(std::max_element(counts.begin(), counts.end()) - counts.begin());
  assert(counts[static_cast<std::size_t>(fullest)] >= 2);
  std::size_t smallest = documents.size();
  for (const std::size_t i : order) {
    if (splits[i] == fullest && (smallest == documents.size() || documents[i].size < documents[smallest].size)) {
      smallest = i;
    }
  }
  splits[smallest] = static_cast<Split>(empty);
}

}  // namespace

Shares checked_shares(const std::vector<double>& split) {
  require(!split.empty() && split.size() <= kSplits, "--split has {} shares, expected 1 to {} (train,valid,test)",
          split.size(), kSplits);
  Shares shares = {};
  for (std::size_t s = 0; s < split.size(); ++s) {
    require(split[s] >= 0 && split[s] <= 1, "--split gives {} a share of {}, expected 0 to 1", kSplitNames[s],
            split[s]);
    shares[s] = split[s];
  }
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  require(std::abs(sum - 1) < 1e-6, "the shares of --split add up to {}, expected 1", sum);
  return shares;
}

std::array<std::uint64_t, kSplits + 1> cuts_by_position(std::uint64_t size, const Shares& shares) {
  std::array<std::uint64_t, kSplits + 1> cuts = {};
  std::uint64_t parts_left = active_splits(shares);
  assert(size >= parts_left);
  double upper = 0;
  for (std::size_t s = 0; s < kSplits; ++s) {
    upper += shares[s];
    cuts[s + 1] = cuts[s];
    if (shares[s] > 0) {
      --parts_left;
      // Each part gets something, the later ones included; the last ends where the document does.
      const auto wanted = static_cast<std::uint64_t>(std::llround(static_cast<double>(size) * upper));
      cuts[s + 1] = parts_left == 0 ? size : std::clamp(wanted, cuts[s] + 1, size - parts_left);
    }
  }
  cuts[kSplits] = size;
  return cuts;
}

std::vector<Split> assign_splits(const std::vector<SizedDocument>& documents, const Shares& shares) {
  std::vector<std::size_t> order(documents.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return documents[a].hash < documents[b].hash; });
  double total = 0;
  for (const SizedDocument& document : documents) {
    total += static_cast<double>(document.size);
  }
  std::vector<Split> splits(documents.size());
  double before = 0;
  for (const std::size_t i : order) {
    const auto size = static_cast<double>(documents[i].size);
    splits[i] = static_cast<Split>(split_at((before + size / 2) / total, shares));
    before += size;
  }
  for (std::size_t s = 0; s < kSplits; ++s) {
    if (shares[s] > 0 && std::find(splits.begin(), splits.end(), static_cast<Split>(s)) == splits.end()) {
      fill_empty_split(s, documents, order, splits);
    }
  }
  return splits;
}

std::size_t active_splits(const Shares& shares) {
  return static_cast<std::size_t>(std::count_if(shares.begin(), shares.end(), [](double share) { return share > 0; }));
}

std::uint64_t document_hash(std::string_view file_name, std::uint64_t begin, std::uint64_t seed) {
  const auto words = philox(random_key(seed, RandomUse::kSplit, hash_of(file_name).low), begin);
  return (std::uint64_t{words[0]} << 32) | words[1];
}

Split split_by_hash(std::uint64_t hash, const Shares& shares) {
  const double position = uniform_double(static_cast<std::uint32_t>(hash >> 32), static_cast<std::uint32_t>(hash));
  return static_cast<Split>(split_at(position, shares));
}

}  // namespace lockstep
