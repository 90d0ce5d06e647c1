#include "tests/trainer/checkpoint/training_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "base/random.h"

namespace lockstep {
namespace {

std::vector<ParameterSpec> small_specs() {
  return {{"head.bias", {37}, false, {}},
          {"qkv",
           {48, 20},
           true,
           {{"attn.q.weight", {16, 20}, 0}, {"attn.k.weight", {16, 20}, 320}, {"attn.v.weight", {16, 20}, 640}}},
          {"scale", {}, false, {{"model.scale", {}, 0}}},
          {"nothing", {0, 8}, false, {}},
          {"embedding", {301, 9}, true, {{"wte.weight", {301, 9}, 0}}}};
}

void fill(const ParameterLayout& layout, std::uint64_t seed, int kind, std::vector<float>& values) {
  values.assign(layout.total(), 0.0F);
  for (std::size_t i = 0; i < layout.size(); ++i) {
    const RandomKey key =
        random_key(seed, RandomUse::kInitialization, hash_of(layout.specs()[i].name).low, static_cast<unsigned>(kind));
    for (std::uint64_t k = 0; k < layout.count(i); ++k) {
      values[layout.offset(i) + k] = uniform_float(philox(key, k)[0]) - (kind == 2 ? 0.0F : 0.5F);
    }
  }
}

}  // namespace

ParameterLayout small_layout() { return ParameterLayout(small_specs()); }

ParameterLayout reversed_layout() {
  auto specs = small_specs();
  std::reverse(specs.begin(), specs.end());
  return ParameterLayout(std::move(specs));
}

TrainingState::TrainingState(ParameterLayout l, std::uint64_t seed) : layout(std::move(l)) {
  fill(layout, seed, 0, master);
  fill(layout, seed, 1, exp_avg);
  fill(layout, seed, 2, exp_avg_sq);
}

TrainingState TrainingState::unset(ParameterLayout l) {
  TrainingState state(std::move(l));
  for (auto* values : {&state.master, &state.exp_avg, &state.exp_avg_sq}) {
    std::fill(values->begin(), values->end(), std::numeric_limits<float>::quiet_NaN());
  }
  return state;
}

CheckpointReader::Destination TrainingState::destination() {
  return {{0, layout.total()}, master, exp_avg, exp_avg_sq};
}

SimulatedJob::SimulatedJob(const std::filesystem::path& folder, const ParameterLayout& layout,
                           const SaveSettings& settings) {
  for (int rank = 0; rank < settings.world; ++rank) {
    CheckpointOptions options;
    options.folder = folder;
    options.rank = rank;
    options.world = settings.world;
    options.range = balanced_range(layout, rank, settings.world, settings.model_dtype);
    options.model_dtype = settings.model_dtype;
    options.keep = settings.keep;
    options.keep_best = settings.keep_best;
    options.background = settings.background;
    options.max_mb_per_s = settings.max_mb_per_s;
    options.texts = {{"config.json", "{\"model_type\": \"small\"}\n"}, {"tokenizer.json", "{}\n"}};
    options_.push_back(options);
    writers_.push_back(std::make_unique<CheckpointWriter>(layout, options));
  }
}

void SimulatedJob::begin(const TrainingState& state, const RunPosition& position) {
  for (std::size_t rank = 0; rank < writers_.size(); ++rank) {
    const ElementRange range = options_[rank].range;
    const auto share = [range](const std::vector<float>& values) {
      return std::span(values).subspan(range.begin, range.size());
    };
    CheckpointSource source;
    if (rank == 0) {
      source.weights = {const_cast<float*>(state.master.data()), state.master.size(), DType::kF32, Device{}};
    }
    if (options_[rank].model_dtype != DType::kF32) {
      source.master = share(state.master);
    }
    source.exp_avg = share(state.exp_avg);
    source.exp_avg_sq = share(state.exp_avg_sq);
    writers_[rank]->begin(position, source);
  }
}

SaveOutcome SimulatedJob::finish() {
  std::optional<SaveOutcome> outcome;
  while (!outcome) {
    std::vector<SaveReport> reports;
    for (const auto& w : writers_) {
      w->wait();
      reports.push_back(w->report());
    }
    std::vector<std::optional<SaveOutcome>> seen;
    for (const auto& w : writers_) {
      seen.push_back(w->advance(reports));
    }
    outcome = seen[0];
    for (const auto& other : seen) {
      EXPECT_EQ(other.has_value(), outcome.has_value());
      EXPECT_TRUE(!other || (other->published == outcome->published && other->message == outcome->message));
    }
  }
  for (const auto& w : writers_) {
    EXPECT_FALSE(w->busy());
  }
  return *outcome;
}

SaveOutcome SimulatedJob::save(const TrainingState& state, const RunPosition& position) {
  begin(state, position);
  return finish();
}

RunPosition position_at(std::uint64_t step) {
  RunPosition position;
  position.step = step;
  position.samples = step * 16;
  position.tokens = step * 16 * 256;
  position.seed = 1337;
  position.config_text = "run:\n  name: \"small\"\n";
  position.extra_json = R"({"best":{"step":100,"validation_loss":1.25}})";
  return position;
}

std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const TrainingState& state,
                                      std::uint64_t step, const SaveSettings& settings) {
  SimulatedJob job(folder, state.layout, settings);
  const SaveOutcome outcome = job.save(state, position_at(step));
  EXPECT_TRUE(outcome.published) << outcome.message;
  EXPECT_EQ(outcome.step, step);
  EXPECT_EQ(outcome.message, "");
  return folder / step_folder_name(step);
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace lockstep
