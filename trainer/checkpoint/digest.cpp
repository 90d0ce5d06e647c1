#include "trainer/checkpoint/digest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <string_view>

namespace lockstep {
namespace {

constexpr std::uint64_t kChunk = ParameterLayout::kAlignment;
constexpr std::array<std::string_view, 3> kKindNames = {"master", "exp_avg", "exp_avg_sq"};

std::string dimensions_of(const ParameterSpec& spec) { return fmt::format("{}", fmt::join(spec.shape, ",")); }

}  // namespace

StateDigest::StateDigest(const ParameterLayout& layout) : layout_(&layout) {
  keys_.reserve(layout.size() * kKindNames.size());
  for (const ParameterSpec& spec : layout.specs()) {
    for (const std::string_view kind : kKindNames) {
      keys_.push_back(hash_of(fmt::format("{}\n{}\n{}", spec.name, dimensions_of(spec), kind)).low);
    }
  }
}

void StateDigest::add(StateKind kind, std::uint64_t begin, std::span<const float> values) {
  assert(begin % kChunk == 0 && values.size() % kChunk == 0 && begin + values.size() <= layout_->total());
  if (values.empty()) {
    return;
  }
  const std::uint64_t end = begin + values.size();
  for (std::size_t i = layout_->index_at(begin); i < layout_->size() && layout_->offset(i) < end; ++i) {
    const std::uint64_t from = std::max(begin, layout_->offset(i));
    const std::uint64_t to = std::min(end, layout_->offset(i) + layout_->count(i));
    if (from < to) {
      add_parameter(kind, i, from - layout_->offset(i), values.subspan(from - begin, to - from));
    }
  }
}

void StateDigest::add_parameter(StateKind kind, std::size_t index, std::uint64_t first, std::span<const float> values) {
  assert(first % kChunk == 0 && first + values.size() <= layout_->count(index));
  assert(values.size() % kChunk == 0 || first + values.size() == layout_->count(index));
  const std::uint64_t key = keys_[index * kKindNames.size() + static_cast<std::size_t>(kind)];
  std::uint64_t chunk_number = first / kChunk;
  for (; !values.empty(); ++chunk_number) {
    const auto chunk = values.first(std::min<std::size_t>(values.size(), kChunk));
    sum_ = combine(sum_, hash_of(std::as_bytes(chunk), key + chunk_number));
    values = values.subspan(chunk.size());
  }
}

Hash128 StateDigest::combine(const Hash128& a, const Hash128& b) {
  const std::uint64_t low = a.low + b.low;
  return {low, a.high + b.high + (low < a.low ? 1 : 0)};
}

Hash128 StateDigest::finish(const ParameterLayout& layout, const Hash128& sum) {
  std::vector<std::string> lines;
  for (const ParameterSpec& spec : layout.specs()) {
    lines.push_back(fmt::format("{}\n{}\n", spec.name, dimensions_of(spec)));
  }
  std::sort(lines.begin(), lines.end());
  return hash_of(fmt::format("lockstep digest 1\n{}\n{}", sum.hex(), fmt::join(lines, "")));
}

Hash128 digest_of(const ParameterLayout& layout, const FlatState& state) {
  StateDigest digest(layout);
  digest.add(StateKind::kMaster, 0, state.master);
  digest.add(StateKind::kExpAvg, 0, state.exp_avg);
  digest.add(StateKind::kExpAvgSq, 0, state.exp_avg_sq);
  return StateDigest::finish(layout, digest.sum());
}

}  // namespace lockstep
