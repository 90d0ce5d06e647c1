// A worker's side of coordination: connects it to whoever watches its job, or makes rank 0 watch.
//
//   JobWatch watch(...);                      before MPI: a worker that hangs in MPI's start is seen, too
//   communicator = make_communicator(...);
//   watch.join(*communicator);                where nobody watches yet, rank 0 begins to
//   ... activity(), stop_requested(), take_save_request() ...
//   watch.farewell(...);
//
// When the job cannot go on because a rank is gone, stopped, or cut off, the process ends with exit code 1, wherever
// its main thread is.
#pragma once

#include <atomic>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/log.h"
#include "comm/communicator.h"
#include "comm/control/activity.h"
#include "comm/control/client.h"
#include "comm/control/coordinator.h"
#include "comm/rank_environment.h"
#include "launcher/job/contact.h"
#include "trainer/config.h"

namespace lockstep {

class JobWatch {
 public:
  // Throws Error(kUsage) for an environment that makes no sense. With comm.silence_s 0 nobody watches.
  JobWatch(const CommConfig& config, const RankEnvironment& ranks, const EnvironmentLookup& environment, Log& log);
  ~JobWatch();
  JobWatch(const JobWatch&) = delete;
  JobWatch& operator=(const JobWatch&) = delete;

  // Collective. Parameter servers look after their workers themselves, and replace those that are lost.
  void join(Communicator& communicator);

  [[nodiscard]] control::Activity& activity() { return activity_; }
  [[nodiscard]] bool stop_requested() const { return stop_requested_.load(); }
  // True once for each request.
  [[nodiscard]] bool take_save_request() { return save_requested_.exchange(false); }
  // Rank 0: lets `lockstep status` find the coordinator as long as the job runs. A file that cannot be written is
  // warned of.
  void publish(const std::filesystem::path& run);

  // Says that this worker ends, and why. `error` is null when all went well. Returns when whoever watches has heard; in
  // rank 0, which may watch itself, when the others have ended too, or after a second. When the watch has already begun
  // to end the process, this does not return.
  void farewell(int exit_code, const std::exception* error);

 private:
  void connect(const Contact& contact, const RankEnvironment& ranks);
  void end(const std::string& reason);

  const CommConfig config_;
  RankEnvironment ranks_;
  Log& log_;
  control::Activity activity_;
  std::atomic<bool> stop_requested_{false};
  std::atomic<bool> save_requested_{false};
  std::mutex ending_;      // held for good by the thread that ends the process
  bool over_ = false;      // the main thread ends it
  bool launched_ = false;  // by lockstep launch, which says what happens
  std::optional<Contact> contact_;
  std::filesystem::path published_;
  std::unique_ptr<control::Coordinator> coordinator_;  // in rank 0, unless launched
  std::unique_ptr<control::Client> client_;
};

}  // namespace lockstep
