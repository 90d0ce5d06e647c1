// Where a run starts: which checkpoint, and whether it belongs to this configuration and this data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/log.h"
#include "data/dataset.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/config.h"
#include "trainer/loss_scaler.h"

namespace lockstep {

// What a run carries from one process to the next besides weights, moments and its configuration: manifest.json's extra
// object.
struct RunProgress {
  std::optional<double> best_validation_loss;   // finite
  std::int64_t without_improvement = 0;         // evaluations since the best
  std::string validation;                       // what the two were measured on, in words; another one starts them anew
  bool evaluation_pending = false;              // the one due after this step was given up for a stop
  std::string data_fingerprint;                 // of the training data: data_fingerprint()
  std::string base_fingerprint;                 // of the model whose weights stay as they are; empty: all are trained
  std::optional<LossScaler::State> loss_scale;  // fp16

  // After an evaluation.
  void note_validation(double loss, double min_delta);
  // From now on it is measured on this. Returns whether that is something else than before.
  bool measure_on(const std::string& what);

  friend bool operator==(const RunProgress&, const RunProgress&) = default;
};
[[nodiscard]] std::string to_json(const RunProgress& progress);
// Throws Error(kCorrupt).
[[nodiscard]] RunProgress run_progress_from_json(const std::string& json);

// Tokens, tokenizer and file checksums of a dataset in 32 hexadecimal digits.
[[nodiscard]] std::string data_fingerprint(const DatasetInfo& info);

// Rank 0: the folder of the checkpoint to start from, empty for a fresh start. Reports damaged checkpoints; changes
// nothing but to put back a checkpoint that a killed process was about to replace. Throws Error(kUsage) when `resume`
// names no checkpoint, or one of another run while this one has its own, and what find_latest_checkpoint() throws.
[[nodiscard]] std::filesystem::path choose_checkpoint(const std::filesystem::path& checkpoints,
                                                      const std::string& resume, Log& log);

// Rank 0, when it is certain that the run starts at `step`: removes leftovers of killed processes and sets checkpoints
// of later steps aside, which are not this run's future.
void clear_the_way(const std::filesystem::path& checkpoints, std::uint64_t step, Log& log);

// Takes over what the configuration left to be derived (micro_batches: auto) from the run's so far, `saved_text`, and
// throws Error(kUsage) when a key differs that decides what is trained or in which order: the run would silently become
// another one. `source` says where the saved configuration comes from.
[[nodiscard]] Config continue_config(Config config, const std::string& saved_text, const std::string& source);
// Throws Error(kUsage) when the run was trained on other data.
void check_same_data(const RunProgress& progress, const DatasetInfo& info, const std::string& dataset);

}  // namespace lockstep
