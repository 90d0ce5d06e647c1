// runs/NAME/metrics.jsonl: one JSON object a line, for each step and, behind its step's line, for each evaluation.
// Written by rank 0.
//
// Numbers are printed with as many digits as it takes to read the same value back, and as null when not finite. A line
// reaches the operating system before the next step begins, so only a crash of the machine can lose one, never a crash
// of the program. Where the disk has no room, lines wait in memory until there is some: metrics do not end a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/file.h"

namespace lockstep {

// Of pairs: means over them.
struct PreferenceMetrics {
  double accuracy = 0;  // share whose better answer has the larger reward
  double chosen_reward = 0;
  double rejected_reward = 0;
};

struct StepMetrics {
  std::int64_t step = 0;  // completed, this one included
  double loss = 0;        // mean over the target tokens, or pairs, of the global batch
  double lr = 0;
  double grad_norm = 0;      // before clipping
  std::uint64_t tokens = 0;  // consumed since the run's first step
  double tokens_per_s = 0;
  double step_ms = 0;
  double data_ms = 0;          // waiting for the loader
  double comm_ms = 0;          // gradients, and with comm.zero 1 weights, on their way between ranks
  double comm_exposed_ms = 0;  // of it, not hidden behind computing
  double checkpoint_ms = 0;    // copying state, or waiting for a save, since the line before
  double mfu = 0;              // of the GEMM rate measured at start
  int world = 1;
  std::optional<double> loss_scale = {};  // of fp16: what the gradients were computed with
  std::optional<PreferenceMetrics> preference = {};
  // By how many steps of all ranks the weights had moved on when this gradient came (comm.mode bounded and async, where
  // a line is about rank 0's own part of the step).
  std::optional<double> staleness = {};
};

struct EvaluationMetrics {
  std::int64_t step = 0;
  double valid_loss = 0;
  double perplexity = 0;
  double accuracy = 0;                               // share of the tokens
  std::int64_t tokens = 0;                           // evaluated
  std::optional<PreferenceMetrics> preference = {};  // with it the two mean nothing, and are left out
};

// A line of the file, with its end.
[[nodiscard]] std::string line_of(const StepMetrics& metrics);
[[nodiscard]] std::string line_of(const EvaluationMetrics& metrics);

class MetricsWriter {
 public:
  struct Kept {
    std::int64_t last_step = 0;
    bool with_evaluation = true;  // of last_step, where its line is the last one
    // Stand in place of the lines of last_step, or of its evaluation where only that is among them.
    std::string last_lines = {};
    [[nodiscard]] bool has_step_line() const;  // among last_lines
  };
  // Keeps these lines and drops the rest, so that nothing stands twice after a resume. Throws Error(kIo).
  MetricsWriter(std::filesystem::path path, const Kept& kept);

  // Writes the line and those that wait. Returns why they could not be written, empty when they were. Up to 16 MiB
  // wait; what comes then is forgotten.
  [[nodiscard]] std::string write(const std::string& line);

 private:
  File file_;
  std::uint64_t size_bytes_ = 0;  // of the file's whole lines
  std::string waiting_;
};

}  // namespace lockstep
