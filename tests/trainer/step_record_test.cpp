#include "trainer/step_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "comm/self_communicator.h"

namespace lockstep {
namespace {

using testing::ElementsAre;

TEST(StepRecord, HandsBackWhatTheOnlyRankSays) {
  SelfCommunicator self;
  StepRecordExchange exchange(self, 3);
  SaveReport report;
  report.state = SaveState::kWritten;
  report.step = 12;
  report.file_bytes = 34;
  const std::vector<double> losses = {0.1, -0.0, std::numeric_limits<double>::max()};
  const GatheredRecords& gathered =
      exchange.exchange({.stop_requested = true, .save_report = report, .micro_batch_losses = losses});
  EXPECT_TRUE(gathered.stop_requested);
  EXPECT_THAT(gathered.micro_batch_losses, ElementsAre(0.1, -0.0, std::numeric_limits<double>::max()));
  ASSERT_EQ(gathered.save_reports.size(), 1U);
  EXPECT_EQ(gathered.save_reports[0].state, SaveState::kWritten);
  EXPECT_EQ(gathered.save_reports[0].step, 12U);
  EXPECT_EQ(gathered.save_reports[0].file_bytes, 34U);
}

TEST(StepRecord, ForgetsTheStepBefore) {
  SelfCommunicator self;
  StepRecordExchange exchange(self, 2);
  const std::vector<double> losses = {1, 2};
  static_cast<void>(exchange.exchange({.stop_requested = true, .save_report = {}, .micro_batch_losses = losses}));
  const GatheredRecords& gathered = exchange.exchange({});
  EXPECT_FALSE(gathered.stop_requested);
  EXPECT_THAT(gathered.micro_batch_losses, ElementsAre(0.0, 0.0));
}

}  // namespace
}  // namespace lockstep
