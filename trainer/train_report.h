// What a person and metrics.jsonl get to see of a run. Every rank has one; only rank 0's says anything.
#pragma once

#include <cstdint>
#include <memory>

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
    double peak_flop_per_s = 0;        // of all ranks together
    double flop_per_token = 0;
  };
  // Cuts metrics.jsonl to what was completed. Throws Error(kIo).
  TrainReport(const Config& config, const Options& options, Log& log);

  // Completes tokens_per_s and mfu of `metrics` from its step_ms and the step's tokens, writes the line and redraws the
  // bar.
  void step(StepMetrics metrics, std::int64_t step_tokens);
  void evaluated(const EvaluationMetrics& metrics);
  // Takes the bar away.
  void finish(std::int64_t completed_steps);

 private:
  template <typename Metrics>
  void write(const Metrics& metrics);

  Options options_;
  std::unique_ptr<MetricsWriter> metrics_;  // rank 0
  std::unique_ptr<Progress> progress_;      // rank 0
  Log& log_;
  double smooth_tokens_per_s_ = 0;
  bool metrics_wait_ = false;  // the last line could not be written
};

}  // namespace lockstep
