#include "comm/sum_kernels.h"

#include <cassert>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "comm/sum_kernels.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h comes first: it includes this file again for each target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lockstep::comm_detail::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <std::size_t K, class D, typename T>
HWY_INLINE hn::Vec<D> tree_vector(D d, const T* const* sources, std::size_t i) {
  if constexpr (K == 1) {
    return hn::LoadU(d, sources[0] + i);
  } else {
    return hn::Add(tree_vector<K / 2>(d, sources, i), tree_vector<K / 2>(d, sources + K / 2, i));
  }
}

template <std::size_t K, typename T>
HWY_INLINE T tree_scalar(const T* const* sources, std::size_t i) {
  if constexpr (K == 1) {
    return sources[0][i];
  } else {
    return tree_scalar<K / 2>(sources, i) + tree_scalar<K / 2>(sources + K / 2, i);
  }
}

template <std::size_t K, std::size_t M, typename T>
void fold_fixed(const T* const* sources, T* const* destinations, std::size_t count) {
  const T* from[K];
  T* to[M];
  for (std::size_t k = 0; k < K; ++k) {
    from[k] = sources[k];
  }
  for (std::size_t m = 0; m < M; ++m) {
    to[m] = destinations[m];
  }
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto sum = tree_vector<K>(d, from, i);
    for (std::size_t m = 0; m < M; ++m) {
      hn::StoreU(sum, d, to[m] + i);
    }
  }
  for (; i < count; ++i) {
    const T sum = tree_scalar<K>(from, i);
    for (std::size_t m = 0; m < M; ++m) {
      to[m][i] = sum;
    }
  }
}

// All destinations in one pass where they are the sources (the sum in a node's shared memory); otherwise the first
// destination is summed and the others are copies of it.
template <std::size_t K, typename T>
void fold_sources(const T* const* sources, T* const* destinations, std::size_t destination_count, std::size_t count) {
  if (destination_count == K) {
    fold_fixed<K, K>(sources, destinations, count);
    return;
  }
  fold_fixed<K, 1>(sources, destinations, count);
  for (std::size_t m = 1; m < destination_count; ++m) {
    const T* const sum = destinations[0];
    fold_fixed<1, 1>(&sum, destinations + m, count);
  }
}

template <typename T>
void fold_any(const T* const* sources, std::size_t source_count, T* const* destinations, std::size_t destination_count,
              std::size_t count) {
  switch (source_count) {
    case 1:
      return fold_sources<1>(sources, destinations, destination_count, count);
    case 2:
      return fold_sources<2>(sources, destinations, destination_count, count);
    case 4:
      return fold_sources<4>(sources, destinations, destination_count, count);
    case 8:
      return fold_sources<8>(sources, destinations, destination_count, count);
    default:
      assert(false);
  }
}

void fold_f32(const float* const* sources, std::size_t source_count, float* const* destinations,
              std::size_t destination_count, std::size_t count) {
  fold_any(sources, source_count, destinations, destination_count, count);
}

void fold_f64(const double* const* sources, std::size_t source_count, double* const* destinations,
              std::size_t destination_count, std::size_t count) {
  fold_any(sources, source_count, destinations, destination_count, count);
}

}  // namespace lockstep::comm_detail::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::comm_detail {

HWY_EXPORT(fold_f32);
HWY_EXPORT(fold_f64);

void fold(const float* const* sources, std::size_t source_count, float* const* destinations,
          std::size_t destination_count, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(fold_f32)(sources, source_count, destinations, destination_count, count);
}

void fold(const double* const* sources, std::size_t source_count, double* const* destinations,
          std::size_t destination_count, std::size_t count) {
  HWY_DYNAMIC_DISPATCH(fold_f64)(sources, source_count, destinations, destination_count, count);
}

}  // namespace lockstep::comm_detail
#endif
