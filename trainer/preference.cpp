#include "trainer/preference.h"

#include <algorithm>
#include <cmath>

#include "ops/tape.h"
#include "trainer/base_model.h"
#include "trainer/batch_rows.h"

namespace lockstep {
namespace {

double log_sigmoid(double x) { return x < 0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x)); }
double sigmoid(double x) { return std::exp(log_sigmoid(x)); }

// A loss and what it changes by with the margin (w - l) - (r_w - r_l).
struct MarginLoss {
  double value = 0;
  double slope = 0;
};
MarginLoss loss_of_margin(const PreferenceConfig& config, double margin) {
  const double z = config.beta * margin;
  const double e = config.label_smoothing;
  switch (config.loss) {
    case PreferenceLoss::kSigmoid:
      return {-(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z), config.beta * (e * sigmoid(z) - (1 - e) * sigmoid(-z))};
    case PreferenceLoss::kHinge:
      return {std::max(0.0, 1 - z), z < 1 ? -config.beta : 0.0};
    case PreferenceLoss::kIpo: {
      const double distance = margin - 1 / (2 * config.beta);
      return {distance * distance, 2 * distance};
    }
  }
  return {};
}

// By sequence, the targets of a batch.
std::vector<std::int64_t> count_targets(const TokenBatch& batch) {
  std::vector<std::int64_t> counts;
  auto next = batch.targets.begin();
  for (const std::int64_t length : batch.lengths) {
    counts.push_back(std::count_if(next, next + length, [](std::int32_t target) { return target >= 0; }));
    next += length;
  }
  return counts;
}

// Everything is frozen; matrices are kept as the run keeps its own frozen ones.
TuneConfig frozen_of(const TuneConfig& tune) {
  TuneConfig frozen;
  frozen.method = TuneMethod::kFreeze;
  frozen.blocks = 0;
  frozen.quantize = tune.quantize;
  return frozen;
}

bool stands_beside(const TuneConfig& tune) {
  return tune.method == TuneMethod::kLora && tune.bias == TuneBias::kNone && tune.also_train.empty();
}

}  // namespace

PreferenceSums& PreferenceSums::operator+=(const PreferenceSums& other) {
  loss += other.loss;
  right += other.right;
  chosen_reward += other.chosen_reward;
  rejected_reward += other.rejected_reward;
  return *this;
}

PreferenceSums sums_of(std::span<const double> values, std::size_t stride) {
  PreferenceSums sums;
  for (std::size_t i = 0; i < values.size(); i += stride) {
    sums += stride == 1 ? PreferenceSums{.loss = values[i]}
                        : PreferenceSums{values[i], values[i + 1], values[i + 2], values[i + 3]};
  }
  return sums;
}

PreferenceMetrics means_of(const PreferenceSums& sums, double pairs) {
  return {sums.right / pairs, sums.chosen_reward / pairs, sums.rejected_reward / pairs};
}

PreferenceSums preference_loss(const PreferenceConfig& config, const TokenBatch& batch, std::span<const double> policy,
                               std::span<const double> reference, float scale, std::span<float> gradients) {
  const std::vector<std::int64_t> targets = count_targets(batch);
  const bool takes_means = config.loss == PreferenceLoss::kIpo;
  PreferenceSums sums;
  for (std::int64_t pair = 0; pair < batch.pairs; ++pair) {
    const auto chosen = static_cast<std::size_t>(2 * pair);
    const std::size_t rejected = chosen + 1;
    const auto chosen_targets = static_cast<double>(targets[chosen]);
    const double chosen_unit = takes_means ? chosen_targets : 1;
    const double rejected_unit = takes_means ? static_cast<double>(targets[rejected]) : 1;
    // Of log-likelihoods, which are the sums' negatives.
    const double chosen_gain = (reference[chosen] - policy[chosen]) / chosen_unit;
    const double rejected_gain = (reference[rejected] - policy[rejected]) / rejected_unit;
    const MarginLoss loss = loss_of_margin(config, chosen_gain - rejected_gain);
    sums += {loss.value + config.sft * policy[chosen] / chosen_targets, chosen_gain > rejected_gain ? 1.0 : 0.0,
             config.beta * chosen_gain, config.beta * rejected_gain};
    if (!gradients.empty()) {
      const auto of_loss = static_cast<double>(scale);
      gradients[chosen] = static_cast<float>(of_loss * (config.sft / chosen_targets - loss.slope / chosen_unit));
      gradients[rejected] = static_cast<float>(of_loss * loss.slope / rejected_unit);
    }
  }
  return sums;
}

ReferenceModel::ReferenceModel(const Config& config, const Replica& policy, Backend& backend) : policy_(policy) {
  if (!stands_beside(config.tune)) {
    copy_ = std::make_unique<Replica>(policy.model().architecture(), config.train.precision, backend,
                                      frozen_of(config.tune));
  }
}

Hash128 ReferenceModel::load(const std::filesystem::path& folder) { return load_base(folder, *copy_, {}); }

std::vector<double> ReferenceModel::sums(const TokenBatch& batch, Arena& arena) const {
  const Replica& replica = copy_ ? *copy_ : policy_;
  Tape tape(replica.backend(), arena, nullptr);
  return replica.model().base_loss(tape, replica.weights(), rows_of(batch)).sums(batch.lengths);
}

}  // namespace lockstep
