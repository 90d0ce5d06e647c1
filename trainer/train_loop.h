// The training step, from batch to checkpoint, in one place.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "comm/communicator.h"
#include "comm/control/activity.h"
#include "data/batch_loader.h"
#include "data/dataset.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/config.h"
#include "trainer/metrics.h"
#include "trainer/rank_state.h"
#include "trainer/resume.h"
#include "trainer/run_folder.h"
#include "trainer/step_record.h"
#include "trainer/train_checkpoint.h"
#include "trainer/train_job.h"
#include "trainer/train_report.h"
#include "trainer/train_step.h"

namespace lockstep {

class TrainLoop {
 public:
  struct Setup {
    Config config;  // resolved
    std::unique_ptr<Backend> backend;
    DatasetInfo data;
    std::string valid_fingerprint;  // data_fingerprint() of data.valid, empty without
    SavedTokenizer tokenizer;
    std::function<bool()> stop_requested;
    std::function<bool()> save_requested;
  };
  // Collective: allocates everything that a step needs. `communicator` takes the backend's memory.
  TrainLoop(Setup setup, Communicator& communicator, control::Activity& activity, Log& log);
  ~TrainLoop();

  // Where the run goes on from; neither: it begins.
  struct Start {
    const CheckpointReader* checkpoint = nullptr;
    const RankState* state = nullptr;
  };
  // Not collective, and changes no file: weights and moments from there, or weights from model.from, or random, and the
  // loader at that step. Throws Error(kUsage) where the run cannot be written.
  void load(const Start& start);
  // After load(): of what was read from model.from, which is to be the same on every rank; empty where nothing was.
  [[nodiscard]] std::string source_fingerprint() const;
  // Not collective, after every rank has loaded. Rank 0 makes or tidies the run's folder: checkpoints of later steps
  // are set aside, metrics.jsonl is cut.
  void open(RunLock& lock);
  // Collective.
  [[nodiscard]] TrainEnd run();
  // What this rank has after an error of the communicator, as it was between two steps; nothing where no rank has all
  // of it (comm.zero: 1).
  [[nodiscard]] std::optional<RankState> state() const;

 private:
  struct StepResult {
    double loss = 0;
    double grad_norm = 0;
    std::optional<double> loss_scale;
    double learning_rate = 0;
    std::optional<PreferenceMetrics> preference;
    double data_ms = 0;
  };

  [[nodiscard]] StepResult step();
  void adopt(const CheckpointReader& checkpoint);
  void adopt(const RankState& state);
  void adopt_progress(const RunProgress& progress);
  [[noreturn]] void end_diverged(const StepResult& result);
  const GatheredRecords& exchange(std::span<const double> losses);
  void enter(control::Phase phase, std::int64_t part = 0);
  void evaluate_now();
  [[nodiscard]] bool evaluation_due() const;
  [[nodiscard]] bool save_due() const;
  [[nodiscard]] bool finished() const;
  [[nodiscard]] bool out_of_patience() const;
  void save();
  void finish_save();
  void handle(const std::optional<SaveOutcome>& outcome);
  [[nodiscard]] RunPosition position() const;

  const Config config_;
  const DatasetInfo data_;
  const std::string validation_;  // RunProgress::validation of this process's evaluations
  const std::function<bool()> stop_requested_;
  const std::function<bool()> save_requested_;
  Communicator& communicator_;
  control::Activity& activity_;
  Log& log_;

  std::unique_ptr<Backend> backend_;
  TrainStep train_step_;
  StepRecordExchange records_;
  CheckpointWriter writer_;
  std::unique_ptr<BatchLoader> loader_;
  std::unique_ptr<TrainReport> report_;

  std::int64_t completed_ = 0;             // steps
  std::uint64_t tokens_ = 0;               // inputs of these steps
  std::int64_t saved_ = -1;                // step of the last save begun
  std::int64_t published_ = -1;            // step of the last checkpoint that is there
  bool save_pending_ = false;              // from before: the checkpoint of a step until now may be missing
  std::string last_lines_;                 // of metrics.jsonl, from before
  double checkpoint_ms_ = 0;               // since the last step's metrics
  double save_begin_ms_ = 0;               // of the last save
  std::string save_failure_;               // of the last save, empty when it went well
  bool stop_ = false;                      // all ranks stop after this step
  bool save_ = false;                      // all ranks save after this step
  std::optional<double> validation_loss_;  // of this step
  RunProgress progress_;
  std::string source_fingerprint_;  // of the first weights
};

// What a log says of a step, counted from 1, that is computed again.
[[nodiscard]] std::string overflow_note(std::int64_t step, const LossScaler& scaler);
// What may help where a loss or a gradient is not finite: a sentence.
[[nodiscard]] std::string_view advice_after_divergence(Precision precision);

}  // namespace lockstep
