// A small training state with known values, and ranks that save it one after the other in this process.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "trainer/checkpoint/digest.h"
#include "trainer/checkpoint/reader.h"
#include "trainer/checkpoint/writer.h"
#include "trainer/flat_parameters.h"

namespace lockstep {

// A matrix fused of three, a bias of odd length, a scalar, an empty parameter, a table.
[[nodiscard]] ParameterLayout small_layout();
// The same parameters in the reverse order.
[[nodiscard]] ParameterLayout reversed_layout();

// Values are a function of (seed, parameter's name, kind, element): the same in every layout. Padding is zero.
struct TrainingState {
  explicit TrainingState(ParameterLayout l, std::uint64_t seed = 1);
  // All NaN: what a load must overwrite.
  [[nodiscard]] static TrainingState unset(ParameterLayout l);

  [[nodiscard]] Hash128 digest() const { return digest_of(layout, {master, exp_avg, exp_avg_sq}); }
  [[nodiscard]] CheckpointReader::Destination destination();

  ParameterLayout layout;
  std::vector<float> master;
  std::vector<float> exp_avg;
  std::vector<float> exp_avg_sq;
};

struct SaveSettings {
  int world = 1;
  DType model_dtype = DType::kF32;
  bool background = false;
  int keep = 3;
  bool keep_best = false;
  double max_mb_per_s = 0;
};

// `world` ranks that hold the same state, driven from one thread as a train loop would.
class SimulatedJob {
 public:
  SimulatedJob(const std::filesystem::path& folder, const ParameterLayout& layout, const SaveSettings& settings);

  void begin(const TrainingState& state, const RunPosition& position);
  // Gathers reports and advances every rank until the save has ended; checks that all ranks saw the same outcome.
  [[nodiscard]] SaveOutcome finish();
  [[nodiscard]] SaveOutcome save(const TrainingState& state, const RunPosition& position);
  [[nodiscard]] CheckpointWriter& writer(int rank) { return *writers_[static_cast<std::size_t>(rank)]; }

 private:
  std::vector<CheckpointOptions> options_;
  std::vector<std::unique_ptr<CheckpointWriter>> writers_;
};

[[nodiscard]] RunPosition position_at(std::uint64_t step);

// Saves `state` at `step` and expects it to be published. Returns the checkpoint's folder.
std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const TrainingState& state,
                                      std::uint64_t step, const SaveSettings& settings = {});

// The names in a folder, sorted.
[[nodiscard]] std::vector<std::string> names_in(const std::filesystem::path& folder);

}  // namespace lockstep
