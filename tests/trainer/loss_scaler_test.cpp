#include "trainer/loss_scaler.h"

#include <gtest/gtest.h>

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
  LossScaler scaler(fp16(65536, 10));
  scaler.restore({256, 9});
  scaler.count_step();
  EXPECT_EQ(scaler.state(), (LossScaler::State{512, 0}));
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
