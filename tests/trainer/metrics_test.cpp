#include "trainer/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <sstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class MetricsTest : public testing::Test {
 protected:
  void append(const std::string& text) { std::ofstream(path_, std::ios::app) << text; }
  // The steps of the file's lines; every line is a whole JSON object.
  [[nodiscard]] std::vector<int> steps() const {
    std::vector<int> result;
    std::istringstream text(read_file(path_));
    for (std::string line; std::getline(text, line);) {
      result.push_back(nlohmann::json::parse(line).at("step").get<int>());
    }
    return result;
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "metrics.jsonl";
};

TEST_F(MetricsTest, WritesNumbersThatReadBackToTheSameValue) {
  const StepMetrics step = {.step = 7,
                            .loss = 1.0 / 3.0,
                            .lr = 6e-4,
                            .grad_norm = std::numbers::pi * 1e17,
                            .tokens = 18'446'744'073'709'551'615U,
                            .tokens_per_s = 12345.678901234567,
                            .step_ms = 0.1,
                            .data_ms = 5e-324,
                            .comm_ms = 1.7976931348623157e308,
                            .comm_exposed_ms = 2,
                            .checkpoint_ms = 0,
                            .mfu = 0.30000000000000004,
                            .world = 16,
                            .loss_scale = 0x1p40};
  const EvaluationMetrics evaluation = {
      .step = 7, .valid_loss = std::numbers::e, .perplexity = 15.1, .accuracy = 0.1, .tokens = 1 << 30};
  MetricsWriter writer(path_, {.last_step = 0});
  EXPECT_EQ(writer.write(line_of(step)), "");
  EXPECT_EQ(writer.write(line_of(evaluation)), "");
  std::istringstream text(read_file(path_));
  std::string line;
  std::getline(text, line);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json.at("step").get<std::int64_t>(), step.step);
  EXPECT_EQ(json.at("loss").get<double>(), step.loss);
  EXPECT_EQ(json.at("lr").get<double>(), step.lr);
  EXPECT_EQ(json.at("grad_norm").get<double>(), step.grad_norm);
  EXPECT_EQ(json.at("loss_scale").get<double>(), 0x1p40);
  EXPECT_EQ(json.at("tokens").get<std::uint64_t>(), step.tokens);
  EXPECT_EQ(json.at("tokens_per_s").get<double>(), step.tokens_per_s);
  EXPECT_EQ(json.at("step_ms").get<double>(), step.step_ms);
  EXPECT_EQ(json.at("data_ms").get<double>(), step.data_ms);
  EXPECT_EQ(json.at("comm_ms").get<double>(), step.comm_ms);
  EXPECT_EQ(json.at("comm_exposed_ms").get<double>(), step.comm_exposed_ms);
  EXPECT_EQ(json.at("checkpoint_ms").get<double>(), step.checkpoint_ms);
  EXPECT_EQ(json.at("mfu").get<double>(), step.mfu);
  EXPECT_EQ(json.at("world").get<int>(), step.world);
  EXPECT_EQ(json.size(), 14U);
  std::getline(text, line);
  const auto valid = nlohmann::json::parse(line);
  EXPECT_EQ(valid.at("step").get<int>(), 7);
  EXPECT_EQ(valid.at("valid_loss").get<double>(), evaluation.valid_loss);
  EXPECT_EQ(valid.at("perplexity").get<double>(), evaluation.perplexity);
  EXPECT_EQ(valid.at("accuracy").get<double>(), evaluation.accuracy);
  EXPECT_EQ(valid.at("valid_tokens").get<std::int64_t>(), evaluation.tokens);
}

// JSON has no infinity: such a line would not be JSON, and a resume would take it for the file's damaged end.
TEST_F(MetricsTest, WritesNullForWhatIsNotANumber) {
  MetricsWriter writer(path_, {.last_step = 0});
  EXPECT_EQ(writer.write(line_of(EvaluationMetrics{.step = 1,
                                                   .valid_loss = std::numeric_limits<double>::quiet_NaN(),
                                                   .perplexity = std::numeric_limits<double>::infinity()})),
            "");
  const auto json = nlohmann::json::parse(read_file(path_));
  EXPECT_TRUE(json.at("valid_loss").is_null());
  EXPECT_TRUE(json.at("perplexity").is_null());
  EXPECT_EQ(json.at("step").get<int>(), 1);
}

TEST_F(MetricsTest, ALineIsInTheFileWhenWriteReturns) {
  MetricsWriter writer(path_, {.last_step = 0});
  EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 1})), "");
  EXPECT_THAT(steps(), ElementsAre(1));
}

TEST_F(MetricsTest, KeepsTheLinesUpToTheStepItGoesOnFrom) {
  {
    MetricsWriter writer(path_, {.last_step = 0});
    for (int step = 1; step <= 4; ++step) {
      if (step % 2 == 0) {
        EXPECT_EQ(writer.write(line_of(EvaluationMetrics{.step = step})), "");
      }
      EXPECT_EQ(writer.write(line_of(StepMetrics{.step = step})), "");
    }
  }
  MetricsWriter writer(path_, {.last_step = 2});
  EXPECT_THAT(steps(), ElementsAre(1, 2, 2));
  EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 3})), "");
  EXPECT_THAT(steps(), ElementsAre(1, 2, 2, 3));
}

TEST_F(MetricsTest, DropsAnEvaluationThatIsToBeDoneAgain) {
  append("{\"step\": 1}\n{\"step\": 2}\n{\"step\": 2, \"valid_loss\": 1.5}\n{\"step\": 3}\n");
  MetricsWriter writer(path_, {.last_step = 2, .with_evaluation = false});
  EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 3})), "");
  EXPECT_THAT(steps(), ElementsAre(1, 2, 3));
}

// Another rank 0 knows what the one before had to write, and perhaps did.
TEST_F(MetricsTest, WritesTheLastStepsLinesAnew) {
  for (const char* const written : {"", "{\"step\": 2}\n", "{\"step\": 2}\n{\"step\": 2, \"valid_loss\": 1.5}\n"}) {
    std::filesystem::remove(path_);
    append(std::string("{\"step\": 1}\n") + written);
    MetricsWriter writer(path_, {.last_step = 2, .last_lines = "{\"step\": 2}\n{\"step\": 2, \"valid_loss\": 1.5}\n"});
    EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 3})), "");
    EXPECT_THAT(steps(), ElementsAre(1, 2, 2, 3));
  }
}

TEST_F(MetricsTest, StartsAnewWhenTheRunDoes) {
  append("{\"step\": 1}\n{\"step\": 2}\n");
  const MetricsWriter writer(path_, {.last_step = 0});
  EXPECT_THAT(steps(), IsEmpty());
}

TEST_F(MetricsTest, DropsALineThatACrashCutShort) {
  append("{\"step\": 1}\n{\"step\": 2, \"loss\": 3.");
  MetricsWriter writer(path_, {.last_step = 2});
  EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 2})), "");
  EXPECT_THAT(steps(), ElementsAre(1, 2));
}

TEST_F(MetricsTest, DropsAWholeLastLineThatLacksItsEnd) {
  append("{\"step\": 1}\n{\"step\": 2}");
  MetricsWriter writer(path_, {.last_step = 2});
  EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 3})), "");
  EXPECT_THAT(steps(), ElementsAre(1, 3));
}

TEST_F(MetricsTest, StopsAtALineThatIsNotItsOwn) {
  for (const char* foreign : {"garbage\n", "\n", "[1]\n", "{\"step\": \"2\"}\n", "{}\n", "{\"step\": 1.5}\n"}) {
    std::ofstream(path_, std::ios::trunc) << "{\"step\": 1}\n" << foreign << "{\"step\": 2}\n";
    const MetricsWriter writer(path_, {.last_step = 9});
    EXPECT_THAT(steps(), ElementsAre(1)) << foreign;
  }
}

TEST_F(MetricsTest, SaysWhenItsFolderIsMissing) {
  EXPECT_THAT(
      message_of_error(ErrorCode::kIo, [&] { MetricsWriter(folder_ / "none/metrics.jsonl", {.last_step = 0}); }),
      HasSubstr("none/metrics.jsonl"));
}

TEST_F(MetricsTest, SaysWhenTheDiskIsFull) {
  MetricsWriter writer("/dev/full", {.last_step = 0});
  EXPECT_THAT(writer.write(line_of(StepMetrics{.step = 1})), HasSubstr("write /dev/full: No space left on device"));
}

// A limit on the file's size stands for the full disk, since it can be lifted again.
TEST_F(MetricsTest, KeepsLinesThatHaveNoRoomAndWritesThemLater) {
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  MetricsWriter writer(path_, {.last_step = 0});
  EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 1})), "");
  const rlimit small = {std::filesystem::file_size(path_) + 20, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THAT(writer.write(line_of(StepMetrics{.step = 2})), HasSubstr("File too large"));
  EXPECT_THAT(writer.write(line_of(StepMetrics{.step = 3})), HasSubstr("File too large"));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_EQ(writer.write(line_of(StepMetrics{.step = 4})), "");
  std::signal(SIGXFSZ, previous);
  EXPECT_THAT(steps(), ElementsAre(1, 2, 3, 4));
}

}  // namespace
}  // namespace lockstep
