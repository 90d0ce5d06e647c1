// A fixed set of threads that share the iterations of one loop at a time.
//
// Kernels cut their work into chunks whose boundaries do not depend on the number of threads, so results do not either.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace lockstep {

class ThreadPool {
 public:
  // `threads` counts the calling thread: 1 starts none.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int threads() const;

  // Calls body(chunk) for each chunk in [0, chunks), on all threads, and returns when all are done. One loop at a time:
  // called from the thread that owns the pool. `body` must not throw.
  template <typename Body>
  void parallel_for(std::size_t chunks, const Body& body) {
    run(
        chunks, [](const void* context, std::size_t chunk) { (*static_cast<const Body*>(context))(chunk); }, &body);
  }

 private:
  using Call = void (*)(const void* context, std::size_t chunk);
  void run(std::size_t chunks, Call call, const void* context);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lockstep
