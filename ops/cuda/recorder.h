// Launches that are captured into CUDA graphs, to run again with other ids: the device's side of Backend::record().
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/cuda/runtime.h"
#include "ops/backend.h"

namespace lockstep::cuda {

class GraphRecording;

class Recorder {
 public:
  [[nodiscard]] std::unique_ptr<Backend::Recording> record(const std::function<void()>& work);
  void between(const std::function<void()>& host_work);

  // Whether launches are being captured now: then nothing may wait, and no memory be taken.
  [[nodiscard]] bool is_capturing() const { return is_capturing_; }
  // While it captures: pinned memory of the recording. `fill` writes it now and before each run.
  [[nodiscard]] const std::byte* input(std::size_t size_bytes, std::function<void(std::span<std::byte>)> fill);

  // Frees memory that launches may be using still; while there are recordings it stays for them.
  void let_go(Buffer memory);

 private:
  void begin_segment();
  void end_segment();
  // Whether there was one.
  bool discard_segment() noexcept;

  GraphRecording* current_ = nullptr;
  bool is_capturing_ = false;
  std::shared_ptr<void> recordings_ = std::make_shared<bool>();  // shared with each of them
  std::vector<Buffer> kept_;
};

}  // namespace lockstep::cuda
