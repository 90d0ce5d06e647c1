// Numbers in GPU memory, for tests: there and back through compute_stream().
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "base/cuda/devices.h"
#include "base/cuda/runtime.h"

namespace lockstep::test {

// Why tests that need a GPU are skipped; empty where there is one.
inline std::string no_gpu() {
  const cuda::DeviceList list = cuda::list_devices();
  return list.problem.empty() ? list.devices[0].problem : list.problem;
}

template <typename T>
class DeviceArray {
 public:
  // The values begin `offset` elements into the allocation, which is aligned.
  explicit DeviceArray(const std::vector<T>& values, std::size_t offset = 0)
      : memory_(cuda::allocate_device((offset + values.size() + 1) * sizeof(T))),
        offset_(offset),
        count_(values.size()) {
    put(values);
  }

  void put(const std::vector<T>& values) {
    cuda::check(cudaMemcpyAsync(data(), values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice,
                                cuda::compute_stream().get()),
                "test: copying to the GPU");
  }
  [[nodiscard]] std::vector<T> get() const {
    std::vector<T> values(count_);
    cuda::check(cudaMemcpyAsync(values.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost,
                                cuda::compute_stream().get()),
                "test: copying from the GPU");
    cuda::compute_stream().synchronize();
    return values;
  }
  [[nodiscard]] T* data() const { return reinterpret_cast<T*>(memory_.data()) + offset_; }
  [[nodiscard]] BufferView view() const { return {data(), count_, kDTypeOf<T>, {DeviceKind::kCuda, 0}}; }

 private:
  Buffer memory_;
  std::size_t offset_;
  std::size_t count_;
};

}  // namespace lockstep::test
