// A collective of a worker that is under way, and what its caller waits for.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/buffer.h"
#include "comm/communicator.h"
#include "comm/server/connection.h"

namespace lockstep::server {

// What a session's thread tells those who wait for it.
struct Outcome {
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr error;   // ended the session
  std::size_t in_flight = 0;  // operations
  bool is_closed = false;     // in order
  bool job_goes_on = false;   // after the error
};

class Operation final : public Work::State {
 public:
  Operation(std::shared_ptr<Outcome> outcome, std::string call_name)
      : name(std::move(call_name)), outcome_(std::move(outcome)) {}

  void wait() override {
    std::unique_lock lock(outcome_->mutex);
    outcome_->changed.wait(lock, [this] { return is_done_; });
    if (error_) {
      std::rethrow_exception(error_);
    }
  }
  [[nodiscard]] bool is_done() const override {
    const std::lock_guard lock(outcome_->mutex);
    return is_done_;
  }
  // By the session's thread, or by the caller for one that never starts.
  void finish(std::exception_ptr error = nullptr) {
    const std::lock_guard lock(outcome_->mutex);
    error_ = std::move(error);
    is_done_ = true;
    --outcome_->in_flight;
    outcome_->changed.notify_all();
  }

  // Of the session's thread, once it has started.
  const std::string name;  // "all_reduce_sum of 1000 f32"
  std::uint64_t call = 0;
  BufferView data;
  ElementRange wanted;      // of a sum
  Wire wire = Wire::kAsIs;  // of a sum: how its elements travel
  // Of a sum: what rounding took from its elements so far, where that is made good.
  std::shared_ptr<std::vector<float>> residual;
  std::vector<ElementRange> owned;  // of a gathering, in bytes by rank
  Connection::Clock::time_point begin;
  std::size_t unsent = 0;  // frames
  // What is still to come, in bytes: from each server, and of each rank in a gathering.
  std::vector<std::uint64_t> awaited_of_server;
  std::vector<bool> in_memory_of_server;  // a sum: whether it is made in memory that this server uses
  std::vector<std::uint64_t> awaited_of_rank;

 private:
  const std::shared_ptr<Outcome> outcome_;
  bool is_done_ = false;
  std::exception_ptr error_;
};

}  // namespace lockstep::server
