#include "trainer/async_update.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "trainer/optimizer.h"
#include "trainer/schedule.h"

namespace lockstep {
namespace {

using nlohmann::json;

class PushedUpdate final : public server::UpdateRule {
 public:
  PushedUpdate(Config config, std::vector<DecayRange> ranges, int workers, ElementRange range, Backend& backend)
      : config_(std::move(config)), ranges_(std::move(ranges)), workers_(workers), range_(range), backend_(backend) {
    of_push_ = config_.optimizer;
    for (double& beta : of_push_.betas) {
      beta = std::pow(beta, 1.0 / workers_);
    }
    of_push_.eps *= root_;
    of_push_.weight_decay /= root_;
  }

  void apply(const Update& update) override {
    const auto pushes = static_cast<std::int64_t>(update.number);
    update_adamw(backend_, of_push_, ranges_,
                 {.step = pushes + 1,
                  .learning_rate = learning_rate(config_, pushes / workers_) / root_,
                  .gradient_scale = update.scale,
                  .part = range_,
                  .gradient = update.gradient,
                  .master = update.weights,
                  .exp_avg = update.exp_avg,
                  .exp_avg_sq = update.exp_avg_sq});
  }

  void look_ahead(const Outlook& outlook) const override {
    if (outlook.number == 0) {
      return;
    }
    const auto pushes = static_cast<std::int64_t>(outlook.number);
    const double rate = outlook.pushes * learning_rate(config_, pushes / workers_) / root_;
    const auto correction = [&](double beta) { return 1.0 - std::pow(beta, static_cast<double>(pushes)); };
    const auto first = static_cast<float>(1 / correction(of_push_.betas[0]));
    const auto second = static_cast<float>(1 / correction(of_push_.betas[1]));
    const auto epsilon = static_cast<float>(of_push_.eps);
    for (const DecayRange& range : ranges_) {
      const ElementRange elements = intersection(range_, range.elements);
      const auto step = static_cast<float>(rate * range.rate);
      const float keep = range.decay ? 1 - step * static_cast<float>(of_push_.weight_decay) : 1.0F;
      for (std::uint64_t i = elements.begin - range_.begin; i < elements.end - range_.begin; ++i) {
        const float change = outlook.exp_avg[i] * first / (std::sqrt(outlook.exp_avg_sq[i] * second) + epsilon);
        outlook.weights[i] = outlook.weights[i] * keep - step * change;
      }
    }
  }

 private:
  const Config config_;  // its optimizer, schedule and number of steps
  const std::vector<DecayRange> ranges_;
  const int workers_;
  const double root_ = std::sqrt(static_cast<double>(workers_));
  const ElementRange range_;
  Backend& backend_;
  OptimizerConfig of_push_;
};

constexpr std::array<std::pair<ScheduleName, std::string_view>, 4> kSchedules = {{{ScheduleName::kConstant, "constant"},
                                                                                  {ScheduleName::kLinear, "linear"},
                                                                                  {ScheduleName::kCosine, "cosine"},
                                                                                  {ScheduleName::kWsd, "wsd"}}};

// Layers of equal shapes can be told apart by their names only.
std::string names_and_shapes(const ParameterLayout& layout) {
  std::string text;
  for (const ParameterSpec& spec : layout.specs()) {
    text += fmt::format("{} {}\n", spec.name, fmt::join(spec.shape, "x"));
  }
  return hash_of(text).hex();
}

json to_json(const std::vector<DecayRange>& ranges) {
  json list = json::array();
  for (const DecayRange& range : ranges) {
    list.push_back(fmt::format("{} {} {}", range.elements.end, range.decay ? 1 : 0, range.rate));
  }
  return list;
}

std::vector<DecayRange> ranges_from(const json& list) {
  std::vector<DecayRange> ranges;
  std::uint64_t begin = 0;
  for (const json& entry : list) {
    std::istringstream text(entry.get<std::string>());
    DecayRange range;
    int decay = 0;
    text >> range.elements.end >> decay >> range.rate;
    if (!text || range.elements.end < begin) {
      fail(ErrorCode::kCorrupt, "server: {} is no range of parameters", entry.get<std::string>());
    }
    range.elements.begin = std::exchange(begin, range.elements.end);
    range.decay = decay != 0;
    ranges.push_back(range);
  }
  return ranges;
}

}  // namespace

float push_scale(const OptimizerConfig& config, double norm, int workers) {
  const bool clip = config.clip_norm > 0 && norm * workers > config.clip_norm;
  return clip ? static_cast<float>(config.clip_norm / norm) : static_cast<float>(workers);
}

std::string describe_update(const Config& config, const ParameterLayout& layout, int workers,
                            std::string_view data_fingerprint, std::string_view base_fingerprint) {
  const auto name = std::find_if(kSchedules.begin(), kSchedules.end(),
                                 [&](const auto& entry) { return entry.first == config.schedule.name; });
  json description{{"workers", workers},
                   {"train.steps", config.train.steps},
                   {"train.micro_batches", config.train.micro_batches},
                   {"train.micro_batch_size", config.train.micro_batch_size},
                   {"data.sequence", config.data.sequence},
                   {"data.train", data_fingerprint},
                   {"run.name", config.run.name},
                   {"run.seed", config.run.seed},
                   {"optimizer.lr", config.optimizer.lr},
                   {"optimizer.beta1", config.optimizer.betas[0]},
                   {"optimizer.beta2", config.optimizer.betas[1]},
                   {"optimizer.eps", config.optimizer.eps},
                   {"optimizer.weight_decay", config.optimizer.weight_decay},
                   {"optimizer.clip_norm", config.optimizer.clip_norm},
                   {"schedule.name", name->second},
                   {"schedule.warmup_steps", config.schedule.warmup_steps},
                   {"schedule.min_lr", config.schedule.min_lr},
                   {"schedule.decay_steps", config.schedule.decay_steps},
                   {"parameters", layout.parameters()},
                   {"ranges", to_json(decay_ranges(layout))}};
  if (!base_fingerprint.empty()) {
    description.update({{"model.from", base_fingerprint},
                        {"trained", names_and_shapes(layout)},
                        {"tune.quantize", name_of(config.tune.quantize)},
                        {"tune.dropout", config.tune.dropout},
                        {"tune.method", name_of(config.tune.method)},
                        {"tune.alpha", config.tune.alpha},
                        {"tune.rslora", config.tune.rslora},
                        {"preference.loss", name_of(config.preference.loss)},
                        {"preference.beta", config.preference.beta},
                        {"preference.label_smoothing", config.preference.label_smoothing},
                        {"preference.sft", config.preference.sft}});
  }
  return description.dump(1);
}

std::unique_ptr<server::UpdateRule> make_update_rule(const std::string& description, ElementRange range,
                                                     Backend& backend) {
  try {
    const json object = json::parse(description);
    Config config;
    object.at("train.steps").get_to(config.train.steps);
    object.at("optimizer.lr").get_to(config.optimizer.lr);
    object.at("optimizer.beta1").get_to(config.optimizer.betas[0]);
    object.at("optimizer.beta2").get_to(config.optimizer.betas[1]);
    object.at("optimizer.eps").get_to(config.optimizer.eps);
    object.at("optimizer.weight_decay").get_to(config.optimizer.weight_decay);
    object.at("schedule.warmup_steps").get_to(config.schedule.warmup_steps);
    object.at("schedule.min_lr").get_to(config.schedule.min_lr);
    object.at("schedule.decay_steps").get_to(config.schedule.decay_steps);
    const auto name = object.at("schedule.name").get<std::string>();
    const auto schedule =
        std::find_if(kSchedules.begin(), kSchedules.end(), [&](const auto& entry) { return entry.second == name; });
    const auto workers = object.at("workers").get<int>();
    std::vector<DecayRange> ranges = ranges_from(object.at("ranges"));
    if (schedule == kSchedules.end() || workers < 1 || config.train.steps < 1 || ranges.empty() ||
        ranges.back().elements.end < range.end) {
      fail(ErrorCode::kCorrupt, "server: a description of {} workers, {} steps, schedule {}, {} ranges", workers,
           config.train.steps, name, ranges.size());
    }
    config.schedule.name = schedule->first;
    return std::make_unique<PushedUpdate>(std::move(config), std::move(ranges), workers, range, backend);
  } catch (const json::exception& error) {
    fail(ErrorCode::kCorrupt, "server: a description that cannot be read: {}", error.what());
  }
}

}  // namespace lockstep
