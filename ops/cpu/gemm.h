// Matrix products by oneDNN on plain row-major memory, with primitives cached by shape.
//
// A product is cut into chunks of columns or rows of d by its shape alone; each chunk is one single-threaded primitive,
// so the bits do not depend on the number of threads. oneDNN's own threading is switched off on every thread that calls
// in.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace lockstep::cpu {

class GemmCache {
 public:
  GemmCache();
  ~GemmCache();
  GemmCache(const GemmCache&) = delete;
  GemmCache& operator=(const GemmCache&) = delete;

  // Whether oneDNN has products in `working` for this processor; of f16 it is not asked for any. Without, they are
  // computed in f32.
  [[nodiscard]] bool has_native(DType working) const;

  // The whole product, on all threads of the pool.
  void run(const Gemm& gemm, ThreadPool& pool);
  // Independent products, each on one thread of the pool.
  void run_each(std::span<const Gemm> products, ThreadPool& pool);
  // The whole product, on the calling thread: for use inside a parallel loop, from any number of threads.
  void run_here(const Gemm& gemm);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lockstep::cpu
