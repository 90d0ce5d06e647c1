#include "tests/cuda_emulator/device.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

namespace lockstep::cuda_emulator {
namespace {

std::atomic<cudaError_t> broken_with = cudaSuccess;
thread_local cudaError_t last_error = cudaSuccess;

void report() {
  std::fprintf(stderr, "cuda_emulator: %llu launches, %llu graphs, %llu allocations\n",
               static_cast<unsigned long long>(requests().launches), static_cast<unsigned long long>(requests().graphs),
               static_cast<unsigned long long>(requests().allocations));
}

}  // namespace

Requests& requests() {
  static Requests& all = []() -> Requests& {
    if (setting("LOCKSTEP_EMULATOR_REPORT", 0) != 0) {
      static_cast<void>(std::atexit(report));
    }
    return *new Requests;
  }();
  return all;
}

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::stoull(text);
}

int device_count() { return static_cast<int>(setting("LOCKSTEP_EMULATED_GPUS", 1)); }
std::size_t device_memory_bytes() { return setting("LOCKSTEP_EMULATED_GPU_MIB", 4096) << 20; }

int capability() {
  static const auto value = static_cast<int>(setting("LOCKSTEP_EMULATED_CAPABILITY", 90));
  return value;
}

cudaError_t sticky_error() { return broken_with; }
void break_device(cudaError_t error) { broken_with = error; }

cudaError_t answer(cudaError_t error) {
  if (sticky_error() != cudaSuccess) {
    error = sticky_error();
  }
  if (error != cudaSuccess && error != cudaErrorNotReady) {
    last_error = error;
  }
  return error;
}

cudaError_t take_last_error() {
  const cudaError_t error = std::exchange(last_error, cudaSuccess);
  return sticky_error() != cudaSuccess ? sticky_error() : error;
}

}  // namespace lockstep::cuda_emulator
