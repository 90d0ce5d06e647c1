// The owner of an ncclComm_t.
#pragma once

#include <nccl.h>

#include "comm/nccl/library.h"

namespace lockstep::nccl {

class Handle {
 public:
  explicit Handle(const Library& library) : library_(library) {}
  ~Handle() { abort(); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  [[nodiscard]] ncclComm_t get() const { return comm_; }
  // Where ncclCommInitRankConfig puts it.
  [[nodiscard]] ncclComm_t* out() { return &comm_; }

  // The orderly end, after ncclCommFinalize has finished.
  [[nodiscard]] ncclResult_t destroy();
  // The other end: stops NCCL's kernels and frees what it holds. NCCL may get stuck in that, when it waits for a GPU
  // that no longer answers: it is left alone then, after some seconds.
  void abort() noexcept;
  [[nodiscard]] bool is_stuck() const { return is_stuck_; }

 private:
  const Library& library_;
  ncclComm_t comm_ = nullptr;
  bool is_stuck_ = false;
};

}  // namespace lockstep::nccl
