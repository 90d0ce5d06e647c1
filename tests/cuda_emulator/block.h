// Runs the threads of a kernel's blocks on one thread of the CPU, each as a fiber that gives way at barriers. What a
// GPU leaves open is made to show: an order of threads or blocks on which a result depends (set
// LOCKSTEP_EMULATOR_ORDER), and a barrier that not all threads of a block reach, which ends the process.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace lockstep::cuda_emulator {

struct Grid {
  dim3 blocks;
  dim3 threads;
  std::size_t shared_bytes = 0;
};

// Calls `thread` once for each thread of each block, one block after another.
void run_grid(const char* name, const Grid& grid, const std::function<void()>& thread);

// Of the thread of the kernel that calls. They do not change while it runs, which the compiler may make use of.
[[nodiscard, gnu::const]] const dim3& thread_index();
[[nodiscard, gnu::const]] const dim3& block_index();
[[nodiscard, gnu::const]] const dim3& block_size();
[[nodiscard, gnu::const]] const dim3& grid_size();
[[nodiscard, gnu::const]] char* shared_memory();

// __syncthreads()
void wait_for_block();
// What the lane with this one's index xor `distance` brings to the same call.
[[nodiscard]] std::uint64_t exchange_in_warp(std::uint64_t value, int distance);
// What all 32 lanes bring to the same call, one after another: `size_bytes` each, at most kMostExchangedBytes. It stays
// until the lane's next exchange.
inline constexpr std::size_t kMostExchangedBytes = 32;
[[nodiscard]] const void* gather_from_warp(const void* own, std::size_t size_bytes);

// Ends the process: the kernel that runs does what a GPU would not let it do.
[[noreturn]] void give_up(const char* what);
// Whether threads and blocks come in another order than theirs (LOCKSTEP_EMULATOR_ORDER).
[[nodiscard]] bool is_reordered();

}  // namespace lockstep::cuda_emulator
