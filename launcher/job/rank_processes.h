// The processes of one attempt of a job, however they are started: by mpirun or srun as a whole (mpi_processes.h), or
// one by one together with parameter servers (served_processes.h).
#pragma once

#include <optional>
#include <string>

#include "comm/control/roster.h"
#include "launcher/job/restart_policy.h"

namespace lockstep {

class RankProcesses {
 public:
  // Why the attempt cannot go on, as far as the processes tell.
  struct Fault {
    Failure failure;
    // The job ends for good, which has been decided.
    std::optional<int> exit_code = {};
    double detected_s = 0;      // from the last sign of life until it was noticed
    bool had_stranger = false;  // a process on a host that could not be reached: it may still be running
  };

  virtual ~RankProcesses() = default;

  // Waits for output up to `timeout_ms`, hands it on, and sees to what has ended.
  virtual void tend(int timeout_ms) = 0;
  // Once all have ended.
  [[nodiscard]] virtual std::optional<int> exit_code() = 0;
  // Whose exit code that is: "mpirun".
  [[nodiscard]] virtual std::string name() const = 0;

  // The ranks have been asked to save and stop; `by_signal` when they hear nothing but signals.
  virtual void stop(bool by_signal) = 0;
  // The attempt is over, and workers that are connected to the coordinator know. The next two make sure of it.
  virtual void end() {}
  virtual void terminate() = 0;
  virtual void kill() = 0;

  // True when they see to this trouble themselves. Otherwise the attempt ends if it is fatal.
  [[nodiscard]] virtual bool take(const control::Trouble& /*trouble*/) { return false; }
  [[nodiscard]] virtual std::optional<Fault> fault() const { return {}; }
};

}  // namespace lockstep
