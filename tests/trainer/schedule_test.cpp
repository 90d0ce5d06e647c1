#include "trainer/schedule.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

Config with_schedule(ScheduleName name) {
  Config config;
  config.optimizer.lr = 1.0;
  config.train.steps = 20;
  config.schedule.name = name;
  config.schedule.warmup_steps = 4;
  config.schedule.min_lr = 0.5;
  config.schedule.decay_steps = 8;
  return config;
}

class ScheduleTest : public testing::TestWithParam<ScheduleName> {};

TEST_P(ScheduleTest, RisesLinearlyToTheHighestRate) {
  const Config config = with_schedule(GetParam());
  EXPECT_EQ(learning_rate(config, 0), 0.25);
  EXPECT_EQ(learning_rate(config, 1), 0.5);
  EXPECT_EQ(learning_rate(config, 2), 0.75);
  EXPECT_EQ(learning_rate(config, 3), 1.0);
}

TEST_P(ScheduleTest, StaysAfterTheLastStepWhatItWasInIt) {
  const Config config = with_schedule(GetParam());
  EXPECT_EQ(learning_rate(config, 20), learning_rate(config, 19));
  EXPECT_EQ(learning_rate(config, 1000), learning_rate(config, 19));
}

TEST_P(ScheduleTest, NeverRisesAfterTheWarmup) {
  Config config = with_schedule(GetParam());
  config.train.steps = 997;
  for (std::int64_t step = 4; step < 997; ++step) {
    EXPECT_LE(learning_rate(config, step), learning_rate(config, step - 1)) << step;
    EXPECT_GE(learning_rate(config, step), 0.5) << step;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ScheduleTest,
                         testing::Values(ScheduleName::kConstant, ScheduleName::kLinear, ScheduleName::kCosine,
                                         ScheduleName::kWsd));

TEST(ScheduleShapeTest, ConstantStays) { EXPECT_EQ(learning_rate(with_schedule(ScheduleName::kConstant), 19), 1.0); }

TEST(ScheduleShapeTest, LinearFallsEvenly) {
  const Config config = with_schedule(ScheduleName::kLinear);
  EXPECT_EQ(learning_rate(config, 7), 0.875);  // a quarter of the way
  EXPECT_EQ(learning_rate(config, 11), 0.75);  // half
  EXPECT_EQ(learning_rate(config, 19), 0.5);
}

TEST(ScheduleShapeTest, CosineIsHalfWayDownInTheMiddleAndEndsAtTheLowest) {
  const Config config = with_schedule(ScheduleName::kCosine);
  EXPECT_DOUBLE_EQ(learning_rate(config, 11), 0.75);
  EXPECT_DOUBLE_EQ(learning_rate(config, 7), 0.5 + 0.25 * (1.0 + 0.70710678118654752));  // cos(pi / 4)
  EXPECT_EQ(learning_rate(config, 19), 0.5);
}

TEST(ScheduleShapeTest, WsdStaysAndThenFallsOverItsLastSteps) {
  const Config config = with_schedule(ScheduleName::kWsd);
  EXPECT_EQ(learning_rate(config, 11), 1.0);     // the last step before the decay
  EXPECT_EQ(learning_rate(config, 12), 0.9375);  // an eighth
  EXPECT_EQ(learning_rate(config, 15), 0.75);
  EXPECT_EQ(learning_rate(config, 19), 0.5);
}

TEST(ScheduleShapeTest, WsdDecaysOverATenthOfTheStepsByDefault) {
  Config config = with_schedule(ScheduleName::kWsd);
  config.schedule.decay_steps = 0;
  EXPECT_EQ(learning_rate(config, 17), 1.0);
  EXPECT_EQ(learning_rate(config, 18), 0.75);
  EXPECT_EQ(learning_rate(config, 19), 0.5);
}

TEST(ScheduleShapeTest, RisesThroughARunShorterThanTheWarmup) {
  Config config = with_schedule(ScheduleName::kCosine);
  config.train.steps = 2;
  EXPECT_EQ(learning_rate(config, 0), 0.25);
  EXPECT_EQ(learning_rate(config, 1), 0.5);
  EXPECT_EQ(learning_rate(config, 9), 0.5);
}

TEST(ScheduleShapeTest, StartsAtTheHighestRateWithoutAWarmup) {
  Config config = with_schedule(ScheduleName::kWsd);
  config.schedule.warmup_steps = 0;
  EXPECT_EQ(learning_rate(config, 0), 1.0);
}

}  // namespace
}  // namespace lockstep
