#include "trainer/loss_scaler.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lockstep {
namespace {

TrainConfig fp16(double scale, std::int64_t window) {
  TrainConfig config;
  config.precision = Precision::kFp16;
  config.loss_scale = scale;
  config.loss_scale_window = window;
  return config;
}

TEST(LossScalerTest, HalvesAtAnOverflowAndDoublesAfterEnoughStepsInARow) {
  LossScaler scaler(fp16(1024, 3));
  EXPECT_EQ(scaler.scale(), 1024.0F);
  scaler.count_step();
  scaler.count_step();
  EXPECT_EQ(scaler.state(), (LossScaler::State{1024, 2}));
  EXPECT_TRUE(scaler.lower());
  EXPECT_EQ(scaler.state(), (LossScaler::State{512, 0}));
  for (int step = 0; step < 2; ++step) {
    scaler.count_step();
    EXPECT_EQ(scaler.scale(), 512.0F);
  }
  scaler.count_step();
  EXPECT_EQ(scaler.state(), (LossScaler::State{1024, 0}));
}

TEST(LossScalerTest, StaysBetweenItsBounds) {
  LossScaler low(fp16(2, 1));
  EXPECT_TRUE(low.lower());
  EXPECT_FALSE(low.lower());
  EXPECT_EQ(low.scale(), 1.0F);
  LossScaler high(fp16(LossScaler::kMost, 1));
  high.count_step();
  EXPECT_EQ(high.state().scale, LossScaler::kMost);
}

TEST(LossScalerTest, GoesOnFromAState) {
  for (const std::int64_t window : {10, 5}) {  // also where so many steps have passed already
    LossScaler scaler(fp16(65536, window));
    scaler.restore({256, 9});
    scaler.count_step();
    EXPECT_EQ(scaler.state(), (LossScaler::State{512, 0}));
  }
}

TEST(LossScalerTest, KnowsWhichStatesThereAre) {
  EXPECT_TRUE(LossScaler::is_possible({1, 0}));
  EXPECT_TRUE(LossScaler::is_possible({LossScaler::kMost, 1999}));
  for (const LossScaler::State& state :
       {LossScaler::State{3, 0}, LossScaler::State{0.5, 0}, LossScaler::State{0, 0}, LossScaler::State{-2, 0},
        LossScaler::State{0x1p41, 0}, LossScaler::State{2, -1}, LossScaler::State{std::nan(""), 0}}) {
    EXPECT_FALSE(LossScaler::is_possible(state)) << state.scale << ", " << state.steps;
  }
}

TEST(LossScalerTest, IsOneForOtherPrecisions) {
  for (const Precision precision : {Precision::kFp32, Precision::kBf16}) {
    TrainConfig config = fp16(1024, 1);
    config.precision = precision;
    LossScaler scaler(config);
    EXPECT_FALSE(scaler.is_on());
    scaler.restore({256, 0});
    scaler.count_step();
    EXPECT_FALSE(scaler.lower());
    EXPECT_EQ(scaler.scale(), 1.0F);
  }
}

}  // namespace
}  // namespace lockstep
