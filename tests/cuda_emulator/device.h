// The state of the emulated GPU of this process, shared by the calls of the runtime. Environment:
//
//   LOCKSTEP_EMULATED_GPUS=N         GPUs that this machine shows (default 1)
//   LOCKSTEP_EMULATED_GPU_MIB=N      memory of each (default 4096)
//   LOCKSTEP_EMULATED_CAPABILITY=N   their compute capability (default 90; 75 is Turing, which has no bf16)
//   LOCKSTEP_EMULATED_SHARED_KIB=N   shared memory that a block may have (default 227, on Turing 64)
//   LOCKSTEP_EMULATED_FAULT=N        the N-th kernel of a process fails as on a broken card, and all calls after it
//   LOCKSTEP_EMULATED_FAULT_GPU=N    where the process uses this GPU (default 0)
//   LOCKSTEP_EMULATED_FAULT_ONCE=F   and makes the file F, which was not there
//   LOCKSTEP_EMULATOR_ORDER=N        another order of threads between barriers, and of blocks: a seed, or "reverse"
//                                    Asynchronous copies then arrive at once, and otherwise when they are waited for
//   LOCKSTEP_EMULATOR_WAITS=1        operations are done when their calls return
//   LOCKSTEP_EMULATOR_REPORT=1       writes what the process asked of the GPU to stderr when it ends
#pragma once

#include <driver_types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace lockstep::cuda_emulator {

[[nodiscard]] int device_count();
[[nodiscard]] std::size_t device_memory_bytes();
[[nodiscard]] int capability();

// What ended the use of the GPU, as a real one remembers it; cudaSuccess before.
[[nodiscard]] cudaError_t sticky_error();
void break_device(cudaError_t error);

// Remembers a failed call for cudaGetLastError(), and returns it. Calls after a broken device fail as it did.
cudaError_t answer(cudaError_t error);
[[nodiscard]] cudaError_t take_last_error();

// What a process asked for.
struct Requests {
  std::atomic<std::uint64_t> launches = 0;  // by the host; those of a graph count when it is captured
  std::atomic<std::uint64_t> graphs = 0;    // that were run
  std::atomic<std::uint64_t> allocations = 0;
};
[[nodiscard]] Requests& requests();

// The value of a variable of the environment, or `otherwise`.
[[nodiscard]] std::uint64_t setting(const char* name, std::uint64_t otherwise);

}  // namespace lockstep::cuda_emulator
