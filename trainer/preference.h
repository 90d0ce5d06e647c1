// Learning from pairs of answers which of two people prefer.
//
// With the log-likelihoods of the better answer w and the worse one l under the model and, r_, under the reference,
//   z = beta * ((w - l) - (r_w - r_l))
//   sigmoid  -(1 - e) log sigmoid(z) - e log sigmoid(-z), e being label_smoothing   (Rafailov et al. 2023, DPO)
//   hinge    max(0, 1 - z)                                                          (Zhao et al. 2023, SLiC)
//   ipo      (z / beta - 1 / (2 beta))^2, of means over an answer's tokens          (Azar et al. 2023)
// and to each sft * (the mean loss of the better answer's tokens). The reference is the model of model.from.
#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "base/hash.h"
#include "data/batch_loader.h"
#include "ops/arena.h"
#include "trainer/config.h"
#include "trainer/metrics.h"
#include "trainer/replica.h"

namespace lockstep {

// Sums over pairs.
struct PreferenceSums {
  double loss = 0;
  double right = 0;            // pairs whose better answer has the larger reward
  double chosen_reward = 0;    // beta * (w - r_w)
  double rejected_reward = 0;  // beta * (l - r_l)

  static constexpr std::size_t kValues = 4;
  [[nodiscard]] std::array<double, kValues> values() const { return {loss, right, chosen_reward, rejected_reward}; }
  PreferenceSums& operator+=(const PreferenceSums& other);
};

[[nodiscard]] PreferenceMetrics means_of(const PreferenceSums& sums, double pairs);
// Of micro-batches that have `stride` values each, as TrainStep::compute_gradients() returns them: a loss, or all.
[[nodiscard]] PreferenceSums sums_of(std::span<const double> values, std::size_t stride);

// The losses of the pairs of a batch. `policy` and `reference` hold, for each sequence of it, the sum of -log p over
// its targets. Where `gradients` is not empty, it gets `scale` times d(loss)/d(policy) for each.
[[nodiscard]] PreferenceSums preference_loss(const PreferenceConfig& config, const TokenBatch& batch,
                                             std::span<const double> policy, std::span<const double> reference,
                                             float scale, std::span<float> gradients);

// The model that a run started from. Where all that is trained stands beside it, it is the run's own without that;
// otherwise a copy in the working dtype, with its matrices as tune.quantize says.
class ReferenceModel {
 public:
  // `policy` outlives it.
  ReferenceModel(const Config& config, const Replica& policy, Backend& backend);

  [[nodiscard]] bool is_copy() const { return copy_ != nullptr; }
  // Reads the weights of a copy; returns load_base()'s fingerprint, and throws as it does.
  Hash128 load(const std::filesystem::path& folder);

  // For each sequence of the batch, the sum of -log p over its targets. Waits for the device.
  [[nodiscard]] std::vector<double> sums(const TokenBatch& batch, Arena& arena) const;

 private:
  const Replica& policy_;
  std::unique_ptr<Replica> copy_;
};

}  // namespace lockstep
