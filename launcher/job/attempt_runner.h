// AttemptRunner of a job, one after the other: each starts all ranks, watches them until they have ended, and tells
// how.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/progress.h"
#include "comm/control/coordinator.h"
#include "launcher/job/contact.h"
#include "launcher/job/job_output.h"
#include "launcher/job/launch_request.h"
#include "launcher/job/rank_processes.h"
#include "launcher/job/restart_policy.h"
#include "launcher/signals.h"

namespace lockstep {

// How an attempt ended.
struct AttemptEnd {
  int exit_code = 0;
  std::string cause;  // empty when nothing failed
  bool again_is_useless = false;
  bool refused = false;        // for what it was given: bad input, no room
  bool had_stranger = false;   // a rank on a host that could not be reached: it may still be running
  bool was_told = false;       // by a worker that said itself what had failed
  bool is_counted = true;      // false: a part of a failure that has been counted
  bool by_signal = false;      // a second one, which is the cause
  std::optional<int> verdict;  // the job ends for good with this exit code, and `cause` says why
  double detected_s = 0;
  std::int64_t first_step = 0;
  std::int64_t last_step = 0;
  bool opened = false;  // the run, so that --resume none has been carried out
  double recovered_s = 0;
};

class AttemptRunner {
 public:
  using Clock = std::chrono::steady_clock;

  // Begins to listen for workers. `stop` listens, and counts signals. All outlive this.
  AttemptRunner(const LaunchRequest& request, StopSignal& stop, Log& log, JobOutput& output, RestartPolicy& policy);
  ~AttemptRunner();
  AttemptRunner(const AttemptRunner&) = delete;
  AttemptRunner& operator=(const AttemptRunner&) = delete;

  // Returns when no process of the attempt is left. Throws what cannot be started.
  [[nodiscard]] AttemptEnd run(int number, const Placement& placement, const std::string& resume);

  [[nodiscard]] const Contact& contact() const { return contact_; }
  // The ranks have been asked to save and stop, by a signal or because a Slurm job's time was almost up.
  [[nodiscard]] bool stop_sent() const { return stop_sent_; }
  [[nodiscard]] bool save_was_early() const { return save_was_early_; }
  // The next attempt makes up for a failure: how long that takes is told.
  void note_failure() { recovering_ = true; }

 private:
  void listen();
  [[nodiscard]] std::unique_ptr<RankProcesses> start(int number, const Placement& placement, const std::string& resume);
  void look_at(const control::JobState& job);
  void show_progress(const control::ActivityState& activity);
  void take_troubles();
  void take_fault(const RankProcesses::Fault& fault);
  void handle_stop(const control::JobState& job);
  [[nodiscard]] bool time_is_up(const control::JobState& job) const;
  void end_processes();
  void wait_for_cause(int exit_code);
  void look_at_folder();

  const LaunchRequest& request_;
  StopSignal& stop_;
  Log& log_;
  JobOutput& output_;
  RestartPolicy& policy_;
  const std::filesystem::path run_;
  Contact contact_;
  std::mutex mutex_;
  std::vector<control::Trouble> troubles_;  // of the coordinator's thread, under the mutex
  std::unique_ptr<control::Coordinator> coordinator_;

  // Of the attempt.
  AttemptEnd end_;
  std::unique_ptr<RankProcesses> processes_;
  std::unique_ptr<Progress> progress_;
  std::optional<Clock::time_point> ending_since_;  // it is over, and its processes are on their way out
  bool terminated_ = false;
  bool killed_ = false;

  bool stop_sent_ = false;
  bool save_was_early_ = false;
  Clock::time_point noticed_;  // when the last failure was
  bool recovering_ = false;
  Clock::time_point step_time_;
  std::int64_t step_seen_ = 0;
  double step_seconds_ = 0;
};

// 0 where there is none, or none can be seen.
[[nodiscard]] std::int64_t newest_checkpoint_step(const std::filesystem::path& run);

}  // namespace lockstep
