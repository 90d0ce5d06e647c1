// Starts a job's workers, watches them, and starts them again, as often as it takes and makes sense.
//
// An attempt is one start of all ranks. It ends when the run is finished, when it was asked to save and stop, or when
// something failed; then the next attempt begins from the newest intact checkpoint, on the hosts that answer. Ranks
// between parameter servers, and these, are also started again one by one within an attempt (served_processes.h). What
// ends the job for good: see RestartPolicy.
#pragma once

#include <memory>
#include <vector>

#include "base/log.h"
#include "launcher/job/child.h"
#include "launcher/job/launch_request.h"
#include "launcher/signals.h"

namespace lockstep {

// The commands and the surroundings of the first attempt, as `lockstep launch --dry-run` prints them.
[[nodiscard]] std::vector<ChildCommand> first_commands(const LaunchRequest& request);

class Supervisor {
 public:
  // `stop` listens, and counts signals.
  Supervisor(LaunchRequest request, StopSignal& stop, Log& log);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // Returns the exit code of the job. Throws Error(kUsage) for hosts that do not answer at the first start.
  [[nodiscard]] int run();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lockstep
