#include "ops/cpu/embedding.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/embedding.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace lockstep::cpu::HWY_NAMESPACE {
namespace {

std::size_t position_of(const Backend::Embedding& embedding, std::size_t row) {
  return static_cast<std::size_t>(embedding.first_position) +
         row % static_cast<std::size_t>(embedding.rows_per_sequence);
}

template <typename T>
void add_rows(std::size_t columns, const T* a, const T* b, T* out) {
  sweep(columns, [&](std::size_t i, auto extent)
                     LOCKSTEP_LAMBDA { store(hn::Add(load(a + i, extent), load(b + i, extent)), out + i, extent); });
}

// sum += x
template <typename T>
void accumulate_row(std::size_t columns, const T* x, float* sum) {
  sweep(columns, [&](std::size_t i, auto extent)
                     LOCKSTEP_LAMBDA { store(hn::Add(load(sum + i, extent), load(x + i, extent)), sum + i, extent); });
}

void embedding_forward_kernel(const Backend::Embedding& embedding, const Tensor& tokens_table,
                              const Tensor& positions_table, const Tensor& x, ThreadPool& pool) {
  const auto columns = static_cast<std::size_t>(x.dim(-1));
  const Chunks chunks = chunks_of_rows(x.rows(), x.dim(-1));
  with_working_type(x.dtype(), [&](auto type) {
    using T = decltype(type);
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      for (std::size_t row = chunks.begin(chunk); row < chunks.begin(chunk) + chunks.size(chunk); ++row) {
        const T* token = tokens_table.data<T>() + static_cast<std::size_t>(embedding.tokens[row]) * columns;
        T* out = x.data<T>() + row * columns;
        if (positions_table.is_defined()) {
          add_rows(columns, token, positions_table.data<T>() + position_of(embedding, row) * columns, out);
        } else {
          std::memcpy(static_cast<void*>(out), token, columns * sizeof(T));
        }
      }
    });
  });
}

// Threads share the columns, so that each element of the tables gets its rows in their order from one thread.
void embedding_backward_kernel(const Backend::Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                               const Tensor& dpositions_table, ThreadPool& pool) {
  constexpr std::size_t kColumns = 64;
  const auto columns = static_cast<std::size_t>(dx.dim(-1));
  const Chunks chunks{columns, kColumns};
  with_working_type(dx.dtype(), [&](auto type) {
    using T = decltype(type);
    pool.parallel_for(chunks.count(), [&](std::size_t chunk) {
      const std::size_t first = chunks.begin(chunk);
      for (std::size_t row = 0; row < embedding.tokens.size(); ++row) {
        const T* gradient = dx.data<T>() + row * columns + first;
        const std::size_t token = static_cast<std::size_t>(embedding.tokens[row]) * columns + first;
        accumulate_row(chunks.size(chunk), gradient, dtokens_table.data<float>() + token);
        if (dpositions_table.is_defined()) {
          const std::size_t position = position_of(embedding, row) * columns + first;
          accumulate_row(chunks.size(chunk), gradient, dpositions_table.data<float>() + position);
        }
      }
    });
  });
}

}  // namespace
}  // namespace lockstep::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lockstep::cpu {

HWY_EXPORT(embedding_forward_kernel);
HWY_EXPORT(embedding_backward_kernel);

void embedding_forward(const Backend::Embedding& embedding, const Tensor& tokens_table, const Tensor& positions_table,
                       const Tensor& x, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(embedding_forward_kernel)(embedding, tokens_table, positions_table, x, pool);
}

void embedding_backward(const Backend::Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                        const Tensor& dpositions_table, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(embedding_backward_kernel)(embedding, dx, dtokens_table, dpositions_table, pool);
}

}  // namespace lockstep::cpu
#endif
