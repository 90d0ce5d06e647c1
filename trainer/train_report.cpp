#include "trainer/train_report.h"

#include <fmt/format.h>

#include <array>
#include <string>

#include "trainer/run_folder.h"

namespace lockstep {

TrainReport::TrainReport(const Config& config, const Options& options, Log& log)
    : options_(options), last_lines_(options.last_lines), log_(log) {
  if (options.rank != 0) {
    return;
  }
  metrics_ = std::make_unique<MetricsWriter>(run_folder(config) / "metrics.jsonl",
                                             MetricsWriter::Kept{.last_step = options.completed_steps,
                                                                 .with_evaluation = !options.evaluation_pending,
                                                                 .last_lines = options.last_lines});
  ProgressOptions progress;
  progress.what = "train";
  progress.total = static_cast<std::uint64_t>(config.train.steps);
  progress.start = static_cast<std::uint64_t>(options.completed_steps);
  progress.line_every = static_cast<std::uint64_t>(config.log.every_steps);
  progress_ = std::make_unique<Progress>(log, progress);
}

void TrainReport::write(const std::string& line) {
  const std::string problem = metrics_->write(line);
  if (!problem.empty() && !metrics_wait_) {
    log_.warning("metrics: {}; lines are kept and written once that works again", problem);
  }
  metrics_wait_ = !problem.empty();
}

void TrainReport::step(StepMetrics metrics, std::int64_t step_tokens) {
  metrics.tokens_per_s = static_cast<double>(step_tokens) / (metrics.step_ms * 1e-3);
  metrics.mfu = metrics.tokens_per_s * options_.flop_per_token / options_.peak_flop_per_s;
  last_lines_ = line_of(metrics);
  if (options_.rank != 0) {
    return;
  }
  write(last_lines_);

  // The bar shows a rate that a person can read: averaged over about ten steps.
  smooth_tokens_per_s_ =
      smooth_tokens_per_s_ == 0 ? metrics.tokens_per_s : 0.9 * smooth_tokens_per_s_ + 0.1 * metrics.tokens_per_s;
  const auto done = static_cast<std::uint64_t>(metrics.step);
  if (progress_->due(done)) {
    const std::string right =
        metrics.preference ? fmt::format(", {:.0f} % right", 100 * metrics.preference->accuracy) : "";
    const std::array<std::string, 4> fields = {
        fmt::format("loss {:.4f}{}", metrics.loss, right), format_count(smooth_tokens_per_s_) + " tokens/s",
        fmt::format("lr {:.2e}", metrics.lr), fmt::format("mfu {:.0f} %", 100 * metrics.mfu)};
    progress_->update(done, fields);
  }
}

void TrainReport::evaluated(const EvaluationMetrics& metrics) {
  const std::string line = line_of(metrics);
  last_lines_ += line;
  if (options_.rank != 0) {
    return;
  }
  write(line);
  if (metrics.preference) {
    log_.info("train: step {}: validation loss {:.4f}, {:.1f} % right, margin {:.3f}", metrics.step, metrics.valid_loss,
              100 * metrics.preference->accuracy,
              metrics.preference->chosen_reward - metrics.preference->rejected_reward);
    return;
  }
  log_.info("train: step {}: validation loss {:.4f}, perplexity {:.2f}", metrics.step, metrics.valid_loss,
            metrics.perplexity);
}

void TrainReport::finish(std::int64_t completed_steps) {
  if (progress_) {
    progress_->finish(static_cast<std::uint64_t>(completed_steps));
  }
}

}  // namespace lockstep
