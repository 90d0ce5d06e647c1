// The update that parameter servers make of a pushed gradient, against the trainer's own.
#include "trainer/async_update.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/random.h"
#include "tests/ops/sum_of_squares.h"
#include "trainer/optimizer.h"
#include "trainer/schedule.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

ParameterLayout mixed_layout() {
  return ParameterLayout({{"gain", {19}, false, {}},
                          {"first", {7, 11}, true, {}},
                          {"second", {16, 2}, true, {}, 0.5},
                          {"last", {5}, false, {}}});
}

Config some_config() {
  Config config;
  config.train.steps = 20;
  config.train.micro_batches = 8;
  config.optimizer.lr = 1e-2;
  config.optimizer.clip_norm = 2;
  config.schedule.name = ScheduleName::kCosine;
  config.schedule.warmup_steps = 3;
  config.schedule.min_lr = 1e-4;
  return config;
}

class AsyncUpdateTest : public testing::Test {
 protected:
  [[nodiscard]] std::vector<float> values(std::uint32_t seed) const {
    std::vector<float> flat(layout_.total());
    for (std::size_t i = 0; i < flat.size(); ++i) {
      flat[i] = uniform_float(philox({seed, 0}, i)[0]) - 0.5F;
    }
    return flat;
  }
  // What servers with `parts` of the parameters make of these pushes of `workers` workers.
  struct State {
    std::vector<float> weights;
    std::vector<float> exp_avg;
    std::vector<float> exp_avg_sq;
  };
  State pushed(const Config& config, int workers, std::uint64_t pushes, std::size_t parts,
               const std::function<std::vector<float>(std::uint64_t)>& gradient_of) {
    State state{values(1), std::vector<float>(layout_.total()), std::vector<float>(layout_.total())};
    const std::string description = describe_update(config, layout_, workers, "data", "");
    for (std::size_t part = 0; part < parts; ++part) {
      const ElementRange range = server::range_of_part(layout_.total(), part, parts);
      const auto rule = make_update_rule(description, range, *backend_);
      for (std::uint64_t number = 0; number < pushes; ++number) {
        const std::vector<float> gradient = gradient_of(number);
        const double norm = std::sqrt(test::sum_of_squares(*backend_, gradient));
        const auto of_part = [&](std::span<float> all) { return all.subspan(range.begin, range.size()); };
        rule->apply({.number = number,
                     .scale = push_scale(config.optimizer, norm, workers),
                     .gradient = std::span(gradient).subspan(range.begin, range.size()),
                     .weights = of_part(state.weights),
                     .exp_avg = of_part(state.exp_avg),
                     .exp_avg_sq = of_part(state.exp_avg_sq)});
      }
    }
    return state;
  }

  ParameterLayout layout_ = mixed_layout();
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2);
};

TEST_F(AsyncUpdateTest, OfOneWorkerItIsTheStepOfModeSyncToTheBit) {
  for (const ScheduleName schedule :
       {ScheduleName::kConstant, ScheduleName::kLinear, ScheduleName::kCosine, ScheduleName::kWsd}) {
    Config config = some_config();
    config.schedule.name = schedule;
    config.schedule.decay_steps = schedule == ScheduleName::kWsd ? 5 : 0;
    const auto gradient_of = [this](std::uint64_t number) { return values(100 + static_cast<std::uint32_t>(number)); };
    Optimizer optimizer(layout_, *backend_, config.optimizer, {0, layout_.total()});
    std::vector<float> weights = values(1);
    for (std::int64_t step = 0; step < config.train.steps; ++step) {
      const std::vector<float> gradient = gradient_of(static_cast<std::uint64_t>(step));
      optimizer.update({.step = step + 1,
                        .learning_rate = learning_rate(config, step),
                        .gradient_norm = std::sqrt(test::sum_of_squares(*backend_, gradient)),
                        .part = optimizer.owned(),
                        .gradient = gradient,
                        .master = weights});
    }
    for (const std::size_t parts : {1U, 2U, 5U}) {
      const State state = pushed(config, 1, static_cast<std::uint64_t>(config.train.steps), parts, gradient_of);
      EXPECT_EQ(state.weights, weights);
      EXPECT_EQ(state.exp_avg, std::vector<float>(optimizer.exp_avg().begin(), optimizer.exp_avg().end()));
      EXPECT_EQ(state.exp_avg_sq, std::vector<float>(optimizer.exp_avg_sq().begin(), optimizer.exp_avg_sq().end()));
    }
  }
}

// The rule for a batch a quarter as large, written down plainly.
TEST_F(AsyncUpdateTest, OfFourWorkersItIsAStepOfAQuarterOfTheBatch) {
  const Config config = some_config();
  OptimizerConfig of_push = config.optimizer;
  of_push.betas = {std::pow(0.9, 0.25), std::pow(0.95, 0.25)};
  of_push.eps = 2e-8;
  of_push.weight_decay = 0.05;
  of_push.clip_norm = 0;
  Optimizer optimizer(layout_, *backend_, of_push, {0, layout_.total()});
  std::vector<float> weights = values(1);
  for (std::int64_t push = 0; push < 40; ++push) {
    std::vector<float> gradient = values(100 + static_cast<std::uint32_t>(push));
    const double norm = std::sqrt(test::sum_of_squares(*backend_, gradient));
    ASSERT_GT(4 * norm, config.optimizer.clip_norm);
    for (float& value : gradient) {
      value *= static_cast<float>(config.optimizer.clip_norm / norm);
    }
    optimizer.update({.step = push + 1,
                      .learning_rate = learning_rate(config, push / 4) / 2,
                      .gradient_norm = 0,
                      .part = optimizer.owned(),
                      .gradient = gradient,
                      .master = weights});
  }
  const State state = pushed(config, 4, 40, 2,
                             [this](std::uint64_t number) { return values(100 + static_cast<std::uint32_t>(number)); });
  EXPECT_EQ(state.weights, weights);
  EXPECT_EQ(state.exp_avg, std::vector<float>(optimizer.exp_avg().begin(), optimizer.exp_avg().end()));
  EXPECT_EQ(state.exp_avg_sq, std::vector<float>(optimizer.exp_avg_sq().begin(), optimizer.exp_avg_sq().end()));
}

// Where every share has the same gradient, the moments after the pushes of all workers are those after the step.
TEST_F(AsyncUpdateTest, MomentsRememberStepsNotPushes) {
  Config config = some_config();
  config.optimizer.clip_norm = 0;
  const State whole = pushed(config, 1, 10, 1, [this](std::uint64_t) { return values(7); });
  const State shared = pushed(config, 4, 40, 1, [this](std::uint64_t) {
    std::vector<float> share = values(7);
    for (float& value : share) {
      value /= 4;
    }
    return share;
  });
  for (std::size_t i = 0; i < whole.weights.size(); ++i) {
    EXPECT_NEAR(shared.exp_avg[i], whole.exp_avg[i], 1e-6) << i;
    EXPECT_NEAR(shared.exp_avg_sq[i], whole.exp_avg_sq[i], 1e-6) << i;
  }
}

TEST_F(AsyncUpdateTest, WeightsDecayByAShareOfAStep) {
  Config config = some_config();
  config.schedule.name = ScheduleName::kConstant;
  config.schedule.warmup_steps = 0;
  const State state = pushed(config, 4, 1, 1, [this](std::uint64_t) { return std::vector<float>(layout_.total()); });
  const std::vector<float> before = values(1);
  const float keep = 1.0F - static_cast<float>(1e-2 / 2) * 0.05F;
  EXPECT_EQ(state.weights[0], before[0]);
  EXPECT_EQ(state.weights[layout_.offset(1)], before[layout_.offset(1)] * keep);
}

TEST(PushScaleTest, ClipsTheEstimateOfTheWholeStepsGradient) {
  OptimizerConfig config;
  config.clip_norm = 1;
  EXPECT_EQ(push_scale(config, 0.25, 1), 1.0F);
  EXPECT_EQ(push_scale(config, 0.25, 4), 4.0F);
  EXPECT_EQ(push_scale(config, 0.5, 4), 2.0F);
  EXPECT_EQ(push_scale(config, 3.0, 1), static_cast<float>(1 / 3.0));
  config.clip_norm = 0;
  EXPECT_EQ(push_scale(config, 100, 4), 4.0F);
}

// A gradient that stays the same is foreseen; before the first update there is nothing to go by.
TEST_F(AsyncUpdateTest, LooksAheadAlongTheMoments) {
  Config config = some_config();
  config.schedule.name = ScheduleName::kConstant;
  config.schedule.warmup_steps = 0;
  config.train.steps = 1000;
  const auto same = [this](std::uint64_t) { return values(7); };
  State state = pushed(config, 2, 400, 1, same);
  const State after = pushed(config, 2, 403, 1, same);
  const auto rule = make_update_rule(describe_update(config, layout_, 2, "data", ""), {0, layout_.total()}, *backend_);
  std::vector<float> ahead = state.weights;
  rule->look_ahead(
      {.number = 400, .pushes = 3, .weights = ahead, .exp_avg = state.exp_avg, .exp_avg_sq = state.exp_avg_sq});
  float furthest = 0;
  for (std::size_t i = 0; i < ahead.size(); ++i) {
    EXPECT_NEAR(ahead[i], after.weights[i], 2e-4F) << i;
    furthest = std::max(furthest, std::abs(after.weights[i] - state.weights[i]));
  }
  EXPECT_GT(furthest, 0.01F);
  std::vector<float> first = values(1);
  rule->look_ahead({.number = 0,
                    .pushes = 3,
                    .weights = first,
                    .exp_avg = std::vector<float>(layout_.total()),
                    .exp_avg_sq = std::vector<float>(layout_.total())});
  EXPECT_EQ(first, values(1));
}

// Adapters of layers with equal shapes have equal sizes and rates.
TEST_F(AsyncUpdateTest, TellsTunedModelsApart) {
  const auto layout = [](const std::string& layer) {
    return ParameterLayout({{.name = layer + ".lora_A", .shape = {4, 16}, .exports = {}},
                            {.name = layer + ".lora_B", .shape = {16, 4}, .exports = {}}});
  };
  Config config = some_config();
  config.tune.method = TuneMethod::kLora;
  const std::string one = describe_update(config, layout("q_proj"), 2, "data", "base");
  EXPECT_EQ(describe_update(config, layout("q_proj"), 2, "data", "base"), one);
  EXPECT_NE(describe_update(config, layout("o_proj"), 2, "data", "base"), one);
  EXPECT_NE(describe_update(config, layout("q_proj"), 2, "data", "other"), one);
  config.tune.quantize = Packing::kQ8;
  EXPECT_NE(describe_update(config, layout("q_proj"), 2, "data", "base"), one);
  EXPECT_NO_THROW((void)make_update_rule(one, {0, layout("q_proj").total()}, *backend_));
}

TEST_F(AsyncUpdateTest, RefusesDescriptionsThatAreNone) {
  const std::string good = describe_update(some_config(), layout_, 2, "data", "");
  const auto refuses = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    EXPECT_THROW((void)make_update_rule(text, {0, layout_.total()}, *backend_), Error) << to;
  };
  EXPECT_NO_THROW((void)make_update_rule(good, {0, layout_.total()}, *backend_));
  EXPECT_THROW((void)make_update_rule("", {0, 1}, *backend_), Error);
  EXPECT_THROW((void)make_update_rule("[1]", {0, 1}, *backend_), Error);
  EXPECT_THROW((void)make_update_rule(good, {0, layout_.total() + 1}, *backend_), Error);
  refuses("\"workers\": 2", "\"workers\": 0");
  refuses("\"train.steps\": 20", "\"train.steps\": 0");
  refuses("\"cosine\"", "\"sine\"");
  refuses("\"optimizer.lr\": ", "\"optimizer.lr\": \"\", \"x\": ");
  refuses(" 1 0.5\"", " one\"");
}

}  // namespace
}  // namespace lockstep
