#include "base/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/captured_log.h"

namespace lockstep {
namespace {

constexpr const char* kErase = "\r\x1b[K";

// A clock that stands where the test puts it.
struct Clock {
  double now_s = 1000;
  [[nodiscard]] std::function<double()> source() {
    return [this] { return now_s; };
  }
};

const std::vector<std::string> kFields = {"loss 2.3451", "12.3k tokens/s"};

TEST(ProgressTest, DrawsABarWithFieldsAndTheTimeLeft) {
  Clock clock;
  CapturedLog captured({.columns = [] { return 100; }});
  Progress progress(captured.log(), {.what = "train", .total = 2000, .now_s = clock.source()});
  clock.now_s += 37;
  progress.update(740, kFields);
  EXPECT_EQ(captured.take(), std::string(kErase) +
                                 "train  37%  [==========>                 ]  740/2000  loss 2.3451  12.3k tokens/s  "
                                 "1:03 left");
}

TEST(ProgressTest, FitsAnyWidthAndGivesUpTheLeastImportantFirst) {
  for (int columns = 1; columns < 140; ++columns) {
    Clock clock;
    CapturedLog captured({.columns = [columns] { return columns; }});
    Progress progress(captured.log(), {.what = "train", .total = 2000, .now_s = clock.source()});
    clock.now_s += 37;
    progress.update(740, kFields);
    std::string text = captured.take();
    if (columns > 1) {
      text = text.substr(std::string(kErase).size());
    }
    EXPECT_LT(static_cast<int>(text.size()), columns) << text;
    const bool has_loss = text.find("loss") != std::string::npos;
    const bool has_rate = text.find("tokens") != std::string::npos;
    EXPECT_TRUE(has_loss || !has_rate) << text;
  }
}

TEST(ProgressTest, RedrawsNoMoreOftenThanTheInterval) {
  Clock clock;
  CapturedLog captured({.columns = [] { return 80; }});
  Progress progress(captured.log(), {.what = "pack", .total = 100, .redraw_interval_s = 0.5, .now_s = clock.source()});
  progress.update(1);
  EXPECT_NE(captured.take(), "");
  clock.now_s += 0.4;
  EXPECT_FALSE(progress.due(2));
  progress.update(2);
  EXPECT_EQ(captured.take(), "");
  clock.now_s += 0.1;
  progress.update(3);
  EXPECT_NE(captured.take(), "");
}

TEST(ProgressTest, WritesPlainLinesByTimeWithoutATerminal) {
  Clock clock;
  CapturedLog captured;
  Progress progress(captured.log(), {.what = "train", .total = 2000, .line_interval_s = 10, .now_s = clock.source()});
  progress.update(1, kFields);
  EXPECT_EQ(captured.take(), "");
  clock.now_s += 10;
  progress.update(500, kFields);
  EXPECT_EQ(captured.take(), "train: step 500 of 2000 (25%), loss 2.3451, 12.3k tokens/s, 0:30 left\n");
  clock.now_s += 5;
  progress.update(750, kFields);
  EXPECT_EQ(captured.take(), "");
  progress.update(2000, kFields);
  EXPECT_EQ(captured.take(), "train: step 2000 of 2000 (100%), loss 2.3451, 12.3k tokens/s\n");
}

TEST(ProgressTest, WritesPlainLinesByCountWhenAskedTo) {
  Clock clock;
  CapturedLog captured;
  Progress progress(captured.log(), {.what = "train", .total = 20, .line_every = 5, .now_s = clock.source()});
  for (std::uint64_t done = 1; done <= 12; ++done) {
    progress.update(done);
  }
  EXPECT_EQ(captured.take(), "train: step 5 of 20 (25%), 0:00 left\ntrain: step 10 of 20 (50%), 0:00 left\n");
}

TEST(ProgressTest, MeasuresOnlyItsOwnWorkAfterAResume) {
  Clock clock;
  CapturedLog captured;
  Progress progress(captured.log(), {.what = "train", .total = 1000, .start = 900, .now_s = clock.source()});
  clock.now_s += 10;
  progress.update(950);
  EXPECT_EQ(captured.take(), "train: step 950 of 1000 (95%), 0:10 left\n");
}

TEST(ProgressTest, CountsUpwardsWhenTheEndIsNotKnown) {
  Clock clock;
  CapturedLog captured({.columns = [] { return 60; }});
  Progress progress(captured.log(), {.what = "pack", .unit = "document", .now_s = clock.source()});
  progress.update(12);
  EXPECT_EQ(captured.take(), std::string(kErase) + "pack  12 documents");
}

TEST(ProgressTest, CountsInTheRightNumber) {
  Clock clock;
  CapturedLog captured;
  Progress(captured.log(), {.what = "eval", .unit = "batch", .now_s = clock.source()}).finish(20);
  Progress(captured.log(), {.what = "train", .now_s = clock.source()}).finish(1);
  EXPECT_EQ(captured.take(), "eval: 20 batches, in 0:00\ntrain: 1 step, in 0:00\n");
}

TEST(ProgressTest, LeavesOneLineAtTheEnd) {
  Clock clock;
  CapturedLog captured({.columns = [] { return 60; }});
  {
    Progress progress(captured.log(), {.what = "train", .total = 20, .now_s = clock.source()});
    progress.update(10);
    captured.take();
    clock.now_s += 83;
    progress.finish(20, kFields);
    EXPECT_EQ(captured.take(), std::string(kErase) + "train: 20 steps, loss 2.3451, 12.3k tokens/s, in 1:23\n");
  }
  EXPECT_EQ(captured.take(), "");
}

TEST(ProgressTest, TakesTheBarAwayWhenItEndsEarly) {
  CapturedLog captured({.columns = [] { return 60; }});
  {
    Progress progress(captured.log(), {.what = "train", .total = 20});
    progress.update(10);
    captured.take();
  }
  EXPECT_EQ(captured.take(), kErase);
}

TEST(FormatTest, WritesDurations) {
  EXPECT_EQ(format_duration(0), "0:00");
  EXPECT_EQ(format_duration(59.6), "1:00");
  EXPECT_EQ(format_duration(83), "1:23");
  EXPECT_EQ(format_duration(7389), "2:03:09");
  EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600 + 5 * 60 + 6), "3d 04:05");
  EXPECT_EQ(format_duration(-1), "0:00");
  EXPECT_EQ(format_duration(0.0 / 0.0), "0:00");
}

TEST(FormatTest, WritesCountsWithThreeDigits) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(987), "987");
  EXPECT_EQ(format_count(999.6), "1.00k");
  EXPECT_EQ(format_count(12345), "12.3k");
  EXPECT_EQ(format_count(999999), "1.00M");
  EXPECT_EQ(format_count(4.564e6), "4.56M");
  EXPECT_EQ(format_count(123.4e9), "123G");
}

TEST(FormatTest, WritesBytesInPowersOf1024) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(std::uint64_t{5} << 30), "5.00 GiB");
}

}  // namespace
}  // namespace lockstep
