// What the leading worker does besides its own steps in comm.mode bounded and async, alone: it evaluates, saves, and
// reports. Saves wait for nobody: a checkpoint of step N holds the weights after N steps' worth of updates, whoever
// made them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/log.h"
#include "comm/control/activity.h"
#include "comm/self_communicator.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/config.h"
#include "trainer/metrics.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/train_checkpoint.h"
#include "trainer/train_report.h"
#include "trainer/train_step.h"

namespace lockstep {

// Makes the run's folder where it is missing. Throws Error(kUsage) when this process may not write there, or when there
// is no room for a checkpoint of `replica`.
void make_run_folder(const Config& config, const Replica& replica);

class AsyncLead {
 public:
  struct Setup {
    const Config& config;
    const SavedTokenizer& tokenizer;
    RunProgress progress;
    int world = 1;
    std::int64_t completed = 0;  // steps of this worker
    std::int64_t updated = 0;    // steps' worth of updates that the weights have seen
    std::int64_t saved = -1;     // of them, in the checkpoint that the servers began with, if any
  };
  // `lock` is the run's, held. Everything else outlives it.
  AsyncLead(const Setup& setup, RunLock lock, TrainStep& train_step, Backend& backend, control::Activity& activity,
            Log& log);
  // Gives the run free.
  ~AsyncLead();

  void report(const StepMetrics& metrics, std::int64_t step_tokens);

  [[nodiscard]] bool evaluation_due(std::int64_t completed) const;
  // Of the replica's weights. Given up when `stop_requested`, and then due when the run goes on.
  void evaluate(std::int64_t completed, const std::function<bool()>& stop_requested);
  // Evaluations say that the run may end.
  [[nodiscard]] bool is_out_of_patience() const;

  [[nodiscard]] bool save_due(std::int64_t completed) const;
  // Of the replica's weights and the optimizer's moments, after `updated` steps' worth of updates.
  void save(std::int64_t completed, std::int64_t updated, std::uint64_t tokens);
  // Once a step: looks after a save under way.
  void look_after_save();
  // Waits for the last save. Throws Error(kIo) when it failed.
  void finish(std::int64_t completed);

 private:
  void handle(const std::optional<SaveOutcome>& outcome);

  const Config& config_;
  TrainStep& train_step_;
  control::Activity& activity_;
  Log& log_;
  SelfCommunicator self_;
  RunLock lock_;
  CheckpointWriter writer_;
  std::unique_ptr<TrainReport> report_;
  RunProgress progress_;
  std::optional<double> validation_loss_;
  std::int64_t evaluated_ = -1;  // step of the last evaluation
  std::int64_t saved_ = -1;      // likewise, as checkpoints count
  std::int64_t looked_at_ = -1;  // completed steps at the last save
  double checkpoint_ms_ = 0;
  double save_begin_ms_ = 0;
  std::string save_failure_;
};

}  // namespace lockstep
