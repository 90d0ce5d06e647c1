// What a person and metrics.jsonl get to see of a run. Every rank has one; only rank 0's says anything.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/log.h"
#include "base/progress.h"
#include "trainer/config.h"
#include "trainer/metrics.h"

namespace lockstep {

class TrainReport {
 public:
  struct Options {
    int rank = 0;
    std::int64_t completed_steps = 0;  // when the process starts
    bool evaluation_pending = false;   // of the last of them
    std::string last_lines = {};       // of metrics.jsonl, of the last of them; empty: those that stand there
    double peak_flop_per_s = 0;        // of all ranks together
    double flop_per_token = 0;
  };
  // Cuts metrics.jsonl to what was completed. Throws Error(kIo).
  TrainReport(const Config& config, const Options& options, Log& log);

  // Completes tokens_per_s and mfu of `metrics` from its step_ms and the step's tokens, writes the line and redraws the
  // bar.
  void step(StepMetrics metrics, std::int64_t step_tokens);
  void evaluated(const EvaluationMetrics& metrics);
  // What was written of the last step, or would have been by rank 0; a text of lines.
  [[nodiscard]] const std::string& last_lines() const { return last_lines_; }
  // Takes the bar away.
  void finish(std::int64_t completed_steps);

 private:
  void write(const std::string& line);

  Options options_;
  std::unique_ptr<MetricsWriter> metrics_;  // rank 0
  std::unique_ptr<Progress> progress_;      // rank 0
  std::string last_lines_;
  Log& log_;
  double smooth_tokens_per_s_ = 0;
  bool metrics_wait_ = false;  // the last line could not be written
};

}  // namespace lockstep
