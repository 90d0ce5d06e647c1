// The ranks of one job as NCCL sees them, with deadlines.
//
// NCCL's communicator is non-blocking: a call that has to wait for other ranks says so, and is asked again and again
// until it is done, until NCCL reports an error, or until the deadline. What was put into the stream is waited for in
// the same way. After an error the communicator is aborted, which ends NCCL's kernels, so that no rank hangs; from then
// on every call throws the same error. NCCL does not see that a process of this node ended, so long waits also ask the
// host communicator. Which rank came too late nobody knows: an Error(kTimeout) names the call and this rank.
//
// Collectives have a stream of their own. What is started waits there for what was in compute_stream() by then, and the
// kernels that follow in compute_stream() go on beside it.
//
// Used by one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "base/cuda/runtime.h"
#include "base/error.h"
#include "comm/communicator.h"
#include "comm/nccl/handle.h"
#include "comm/nccl/library.h"

namespace lockstep::nccl {

// A call of the Communicator, for errors. Texts outlive the group.
struct Call {
  std::string_view name;
  std::size_t count = 0;
  DType dtype = DType::kF32;
};

class Group : public std::enable_shared_from_this<Group> {
 public:
  // Collective: over `host`, which lives until close() or abandon(), the ranks learn how they reach each other. On the
  // GPU in use. Throws Error(kUnsupported,
  // kUsage, kTimeout, kPeerLost, kIo, kDevice).
  Group(const CommOptions& options, Communicator& host);
  // Aborts unless close() was called.
  ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  [[nodiscard]] std::size_t rank() const { return rank_; }
  [[nodiscard]] std::size_t world_size() const { return world_size_; }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] const Library& library() const { return library_; }

  // Puts a call into the stream: `enqueue` makes NCCL's calls and launches kernels, with the functions below.
  template <typename Enqueue>
  [[nodiscard]] Work start(const Call& call, const Enqueue& enqueue) {
    begin(call);
    guard([&] {
      follow_compute_stream();
      enqueue();
    });
    return finish();
  }

  // For `enqueue`.
  [[nodiscard]] ncclComm_t comm() const { return handle_.get(); }
  [[nodiscard]] cudaStream_t stream() const { return stream_.get(); }
  // Throws unless `result` is good; within a group of NCCL's calls.
  void check(ncclResult_t result) const;
  // Also waits until NCCL has put the call, or the group of calls, into the stream. It takes no further one before.
  void settle(ncclResult_t result) const;

  // All ranks, after all Work: nothing may be started afterwards.
  void close();
  // Ends the group early: what is still waited for throws Error(kPeerLost). Never throws, returns after seconds at
  // most.
  void abandon() noexcept;
  // NCCL did not even return from being aborted: memory and streams that it may use must stay as they are.
  [[nodiscard]] bool is_stuck() const { return handle_.is_stuck(); }

 private:
  class Started;
  class Patience;

  void begin(const Call& call);
  void follow_compute_stream();
  [[nodiscard]] Work finish();
  // Blocks until `done` has been passed, and makes compute_stream() wait for it.
  void wait_for(const cuda::Event& done, const Call& call);

  // Runs `step`; when it throws, the group has failed.
  template <typename Step>
  void guard(const Step& step) {
    try {
      step();
    } catch (const Error& error) {
      fail_with(error);
      throw;
    }
  }
  void fail_with(const Error& error) noexcept;
  void require_no_failure() const;
  void check_for_errors() const;
  void check_peers() const;
  [[nodiscard]] bool has_passed(const cuda::Event& event) const;
  [[nodiscard]] std::string where() const;  // "all_reduce_sum of 1000 f32: rank 3 of 8"

  [[nodiscard]] cuda::Event take_event();
  void give_back(cuda::Event event) noexcept;

  const Library library_;
  const std::size_t rank_;
  const std::size_t world_size_;
  const int timeout_ms_;
  Communicator* host_;  // null when the group has ended
  Device device_;
  cuda::Stream stream_;
  cuda::Event computed_;             // recorded anew by every call: a wait for it means what it was then
  std::vector<cuda::Event> events_;  // not in use
  std::size_t events_made_ = 0;
  Call call_;  // that NCCL is busy with, or was last
  std::optional<Error> failure_;
  bool is_closed_ = false;
  Handle handle_;  // last: aborted first
};

// A group of NCCL's calls, which start together. Left early, by an error, it is ended all the same.
class CallGroup {
 public:
  explicit CallGroup(const Group& group);
  CallGroup(const CallGroup&) = delete;
  CallGroup& operator=(const CallGroup&) = delete;
  ~CallGroup();
  // Once, at the end.
  void end();

 private:
  const Group& group_;
  bool is_open_ = false;
};

}  // namespace lockstep::nccl
