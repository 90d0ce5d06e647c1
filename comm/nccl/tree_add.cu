#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdint>
#include <vector>

#include "base/cuda/launch.cuh"
#include "comm/nccl/tree_add.h"

namespace lockstep::nccl {
namespace {

constexpr int kThreads = 256;
// The sums run beside the backward pass: enough blocks for the memory's whole speed, not more.
constexpr std::size_t kMostBlocks = 512;
constexpr std::size_t kVectorBytes = 16;

// Passed to the kernel by value.
struct Sources {
  const void* at[kMaxSourcesAtOnce] = {};
};

// What a thread reads at once: 16 bytes, or one element.
__device__ float add(float a, float b) { return a + b; }
__device__ double add(double a, double b) { return a + b; }
__device__ float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
__device__ double2 add(double2 a, double2 b) { return make_double2(a.x + b.x, a.y + b.y); }

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = float4;
};
template <>
struct VectorOf<double> {
  using Type = double2;
};

// Element i, counted from `offset_bytes` into each array, of the tree's node above leaves [kFirst, kFirst + kLeaves).
// Leaves beyond the last source are absent: their sibling is passed on as it is.
template <typename Value, int kFirst, int kLeaves, bool kAllPresent>
__device__ __forceinline__ Value node(const Sources& sources, int present, std::size_t offset_bytes, std::size_t i) {
  if constexpr (kLeaves == 1) {
    return reinterpret_cast<const Value*>(static_cast<const char*>(sources.at[kFirst]) + offset_bytes)[i];
  } else {
    constexpr int kHalf = kLeaves / 2;
    const Value left = node<Value, kFirst, kHalf, kAllPresent>(sources, present, offset_bytes, i);
    if constexpr (!kAllPresent) {
      if (kFirst + kHalf >= present) {
        return left;
      }
    }
    return add(left, node<Value, kFirst + kHalf, kHalf, kAllPresent>(sources, present, offset_bytes, i));
  }
}

// The arrays are `head` elements, `vectors` aligned vectors, and again single elements up to `count`.
struct Shape {
  std::size_t head = 0;
  std::size_t vectors = 0;
  std::size_t count = 0;
};

template <typename T, int kLeaves, bool kAllPresent>
__global__ void __launch_bounds__(kThreads)
    tree_add_kernel(const __grid_constant__ Sources sources, int present, T* destination, Shape shape) {
  using Vector = typename VectorOf<T>::Type;
  constexpr std::size_t kLanes = sizeof(Vector) / sizeof(T);
  const std::size_t first = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::size_t step = std::size_t{gridDim.x} * kThreads;

  auto* const vectors = reinterpret_cast<Vector*>(destination + shape.head);
  for (std::size_t i = first; i < shape.vectors; i += step) {
    vectors[i] = node<Vector, 0, kLeaves, kAllPresent>(sources, present, shape.head * sizeof(T), i);
  }

  const std::size_t in_vectors = shape.vectors * kLanes;
  for (std::size_t i = first; i < shape.count - in_vectors; i += step) {
    const std::size_t element = i < shape.head ? i : i + in_vectors;
    destination[element] = node<T, 0, kLeaves, kAllPresent>(sources, present, 0, element);
  }
}

std::size_t misalignment(const void* array) { return reinterpret_cast<std::uintptr_t>(array) % kVectorBytes; }

template <typename T>
Shape shape_of(std::span<void* const> sources, const void* destination, std::size_t count) {
  const std::size_t behind = misalignment(destination);
  const bool alike = std::all_of(sources.begin(), sources.end(),
                                 [behind](const void* source) { return misalignment(source) == behind; });
  if (!alike || behind % sizeof(T) != 0) {
    return {0, 0, count};
  }
  const std::size_t head = std::min(count, (kVectorBytes - behind) % kVectorBytes / sizeof(T));
  return {head, (count - head) * sizeof(T) / kVectorBytes, count};
}

template <typename T, int kLeaves, bool kAllPresent>
void add_leaves(std::span<void* const> from, void* destination, std::size_t count, cudaStream_t stream) {
  Sources sources;
  std::copy(from.begin(), from.end(), sources.at);
  const Shape shape = shape_of<T>(from, destination, count);
  const std::size_t items = std::max(shape.vectors, count - shape.vectors * kVectorBytes / sizeof(T));
  const std::size_t blocks = std::clamp<std::size_t>((items + kThreads - 1) / kThreads, 1, kMostBlocks);
  cuda::launch("comm: adding along the tree", tree_add_kernel<T, kLeaves, kAllPresent>,
               {static_cast<unsigned>(blocks), kThreads}, stream, sources, static_cast<int>(from.size()),
               static_cast<T*>(destination), shape);
}

template <typename T>
void add_at_once(std::span<void* const> sources, void* destination, std::size_t count, cudaStream_t stream) {
  switch (sources.size()) {
    case 1:
      return add_leaves<T, 1, true>(sources, destination, count, stream);
    case 2:
      return add_leaves<T, 2, true>(sources, destination, count, stream);
    case 4:
      return add_leaves<T, 4, true>(sources, destination, count, stream);
    case 8:
      return add_leaves<T, 8, true>(sources, destination, count, stream);
    case 16:
      return add_leaves<T, 16, true>(sources, destination, count, stream);
    case 32:
      return add_leaves<T, 32, true>(sources, destination, count, stream);
    case 64:
      return add_leaves<T, 64, true>(sources, destination, count, stream);
    default:
      return add_leaves<T, 64, false>(sources, destination, count, stream);
  }
}

// Groups of kMaxSourcesAtOnce sources, a power of two, are complete subtrees; only the last may lack leaves.
template <typename T>
void add_by_levels(std::span<void* const> sources, void* destination, std::size_t count, cudaStream_t stream) {
  if (sources.size() <= kMaxSourcesAtOnce) {
    return add_at_once<T>(sources, destination, count, stream);
  }
  std::vector<void*> sums;
  for (std::size_t first = 0; first < sources.size(); first += kMaxSourcesAtOnce) {
    const std::span<void* const> group = sources.subspan(first, std::min(kMaxSourcesAtOnce, sources.size() - first));
    if (group.size() > 1) {
      add_at_once<T>(group, group[0], count, stream);
    }
    sums.push_back(group[0]);
  }
  add_by_levels<T>(sums, destination, count, stream);
}

}  // namespace

void tree_add(std::span<void* const> sources, void* destination, std::size_t count, DType dtype, cudaStream_t stream) {
  static_assert(std::has_single_bit(kMaxSourcesAtOnce));
  assert(!sources.empty() && (dtype == DType::kF32 || dtype == DType::kF64));
  if (count == 0) {
    return;
  }
  if (dtype == DType::kF64) {
    return add_by_levels<double>(sources, destination, count, stream);
  }
  add_by_levels<float>(sources, destination, count, stream);
}

}  // namespace lockstep::nccl
