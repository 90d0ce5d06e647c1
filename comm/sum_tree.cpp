#include "comm/sum_tree.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>

#include "base/error.h"
#include "comm/sum_kernels.h"

namespace lockstep {
namespace {

// Elements folded at a time where partial sums need memory: small enough that they stay in the first-level cache.
constexpr std::size_t kBlock = 512;

// Folds any number of sources for one block. Subtrees of up to eight leaves stay in registers; the values of larger
// ones pass through scratch memory, two blocks (left and right child) a level.
template <typename T>
class BlockFolder {
 public:
  explicit BlockFolder(std::span<const T* const> sources)
      : sources_(sources), scratch_(2 * kBlock * static_cast<std::size_t>(std::bit_width(sources.size()) + 1)) {}

  // The sum over sources [first, first + leaves), leaves a power of two, of which those beyond the last source are
  // absent. Returns where it lies: a source itself or scratch memory.
  const T* fold_subtree(std::size_t first, std::size_t leaves, std::size_t begin, std::size_t count, int side) {
    const std::size_t present = std::min(leaves, sources_.size() - first);
    T* const result = scratch_for(leaves, side);
    if (present == 1) {
      return sources_[first] + begin;
    }
    if (present == leaves && leaves <= comm_detail::kMaxFold) {
      std::array<const T*, comm_detail::kMaxFold> from{};
      std::transform(sources_.begin() + first, sources_.begin() + first + leaves, from.begin(),
                     [begin](const T* source) { return source + begin; });
      comm_detail::fold(from.data(), leaves, &result, 1, count);
      return result;
    }
    const std::size_t half = leaves / 2;
    const T* const left = fold_subtree(first, half, begin, count, 0);
    if (present <= half) {
      return left;
    }
    const T* const right = fold_subtree(first + half, half, begin, count, 1);
    const std::array<const T*, 2> both = {left, right};
    comm_detail::fold(both.data(), 2, &result, 1, count);
    return result;
  }

 private:
  T* scratch_for(std::size_t leaves, int side) {
    const auto level = static_cast<std::size_t>(std::bit_width(leaves) - 1);
    return scratch_.data() + (2 * level + static_cast<std::size_t>(side)) * kBlock;
  }

  std::span<const T* const> sources_;
  std::vector<T> scratch_;
};

template <typename T>
const T* as_const_array(const std::byte* bytes) {
  return reinterpret_cast<const T*>(bytes);
}
template <typename T>
T* as_array(std::byte* bytes) {
  return reinterpret_cast<T*>(bytes);
}

template <typename T>
void tree_sum_of(std::span<const std::byte* const> source_bytes, std::span<std::byte* const> destination_bytes,
                 std::size_t count) {
  if (std::has_single_bit(source_bytes.size()) && source_bytes.size() <= comm_detail::kMaxFold &&
      destination_bytes.size() <= comm_detail::kMaxFold) {
    std::array<const T*, comm_detail::kMaxFold> sources{};
    std::array<T*, comm_detail::kMaxFold> destinations{};
    std::transform(source_bytes.begin(), source_bytes.end(), sources.begin(), as_const_array<T>);
    std::transform(destination_bytes.begin(), destination_bytes.end(), destinations.begin(), as_array<T>);
    comm_detail::fold(sources.data(), source_bytes.size(), destinations.data(), destination_bytes.size(), count);
    return;
  }
  std::vector<const T*> sources(source_bytes.size());
  std::vector<T*> destinations(destination_bytes.size());
  std::transform(source_bytes.begin(), source_bytes.end(), sources.begin(), as_const_array<T>);
  std::transform(destination_bytes.begin(), destination_bytes.end(), destinations.begin(), as_array<T>);
  BlockFolder<T> folder(sources);
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t length = std::min(kBlock, count - begin);
    const T* const sum = folder.fold_subtree(0, std::bit_ceil(sources.size()), begin, length, 0);
    for (T* destination : destinations) {
      std::copy_n(sum, length, destination + begin);
    }
  }
}

}  // namespace

std::vector<TreeStep> tree_steps(int leaves) {
  std::vector<TreeStep> steps;
  for (int distance = 1; distance < leaves; distance *= 2) {
    for (int target = 0; target + distance < leaves; target += 2 * distance) {
      steps.push_back({target, target + distance});
    }
  }
  return steps;
}

void add_into(const BufferView& target, const BufferView& source) {
  assert(target.count == source.count && target.dtype == source.dtype);
  const std::array<const std::byte*, 2> both = {static_cast<const std::byte*>(target.data),
                                                static_cast<const std::byte*>(source.data)};
  const std::array<std::byte*, 1> result = {static_cast<std::byte*>(target.data)};
  tree_sum(both, result, target.count, target.dtype);
}

void tree_sum(std::span<const std::byte* const> sources, std::span<std::byte* const> destinations, std::size_t count,
              DType dtype) {
  assert(!sources.empty() && !destinations.empty());
  switch (dtype) {
    case DType::kF32:
      return tree_sum_of<float>(sources, destinations, count);
    case DType::kF64:
      return tree_sum_of<double>(sources, destinations, count);
    default:
      fail(ErrorCode::kUsage, "sum: elements are {}, expected f32 or f64", name_of(dtype));
  }
}

}  // namespace lockstep
