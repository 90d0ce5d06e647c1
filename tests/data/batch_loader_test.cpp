#include "data/batch_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "data/dataset.h"
#include "tests/data/small_dataset.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

class BatchLoaderTest : public testing::Test {
 protected:
  BatchLoaderTest() { static_cast<void>(write_small_dataset(folder_ / "d", counting_tokens(1001), {400, 601})); }

  [[nodiscard]] BatchLoaderOptions options() const {
    BatchLoaderOptions options;
    options.dataset = folder_ / "d";
    options.sequence = 10;
    options.micro_batches = 4;
    options.micro_batch_size = 2;
    options.seed = 3;
    return options;
  }

  TemporaryFolder folder_;
};

TEST_F(BatchLoaderTest, YieldsTheSamplersRowsWithTargetsOneFurther) {
  const Sampler sampler({100, 4, 2, 3});
  BatchLoader loader(options());
  for (std::uint64_t step = 0; step < 30; ++step) {
    for (std::int64_t m = 0; m < 4; ++m) {
      const TokenBatch& batch = loader.next();
      ASSERT_EQ(batch.step, step);
      ASSERT_EQ(batch.micro_batch, m);
      ASSERT_EQ(batch.row_tokens, 10);
      ASSERT_EQ(batch.target_tokens, 20);
      ASSERT_EQ(batch.step_inputs, 80);
      ASSERT_EQ(batch.step_targets, 80);
      ASSERT_EQ(batch.inputs.size(), 20U);
      ASSERT_EQ(batch.targets.size(), 20U);
      for (std::int64_t b = 0; b < 2; ++b) {
        const auto first = static_cast<std::int32_t>(sampler.sample(step, m, b) * 10);
        for (std::int32_t t = 0; t < 10; ++t) {
          ASSERT_EQ(batch.inputs[static_cast<std::size_t>(b * 10 + t)], first + t);
          ASSERT_EQ(batch.targets[static_cast<std::size_t>(b * 10 + t)], first + t + 1);
        }
      }
    }
  }
}

TEST_F(BatchLoaderTest, GivesEveryRankCountTheSameMicroBatchesFromAnyStepOn) {
  using Key = std::pair<std::uint64_t, std::int64_t>;
  std::map<Key, std::vector<std::int32_t>> alone;
  {
    BatchLoader loader(options());
    for (int i = 0; i < 40; ++i) {
      const TokenBatch& batch = loader.next();
      alone[{batch.step, batch.micro_batch}] = batch.inputs;
    }
  }
  for (const int world : {2, 4}) {
    for (int rank = 0; rank < world; ++rank) {
      BatchLoaderOptions part = options();
      part.rank = rank;
      part.world = world;
      part.first_step = 5;
      part.read_ahead_steps = 1;
      BatchLoader loader(part);
      for (int i = 0; i < 5 * 4 / world; ++i) {
        const TokenBatch& batch = loader.next();
        EXPECT_EQ(batch.micro_batch / (4 / world), rank);
        EXPECT_EQ(alone.at({batch.step, batch.micro_batch}), batch.inputs);
      }
    }
  }
}

TEST_F(BatchLoaderTest, TracesWhatItHandsOutSoThatAnEpochCanBeProven) {
  // 100 samples, 8 a step: 25 steps are two epochs. Two ranks up to step 10, then one.
  BatchLoaderOptions traced = options();
  traced.trace = folder_ / "trace";
  for (int rank = 0; rank < 2; ++rank) {
    traced.rank = rank;
    traced.world = 2;
    BatchLoader loader(traced);
    for (int i = 0; i < 10 * 2 + 1; ++i) {  // one more: a step that was not handed out whole leaves no line
      static_cast<void>(loader.next());
    }
  }
  traced.rank = 0;
  traced.world = 1;
  traced.first_step = 10;
  {
    BatchLoader loader(traced);
    for (int i = 0; i < 15 * 4; ++i) {
      static_cast<void>(loader.next());
    }
  }
  std::map<std::string, int> times;
  std::set<std::string> places;
  for (const char* file : {"trace.rank0", "trace.rank1"}) {
    std::istringstream lines(read_file(folder_ / file));
    std::string step;
    std::string micro_batch;
    std::string sample;
    std::string hash;
    while (lines >> step >> micro_batch >> sample >> hash) {
      ++times[sample + " " + hash];
      places.insert(step + " " + micro_batch + " " + sample);
    }
  }
  EXPECT_EQ(times.size(), 100U);
  for (const auto& [sample, count] : times) {
    EXPECT_EQ(count, 2) << sample;
  }
  EXPECT_EQ(places.size(), 200U);
  // The hash of sample 7, tokens 70 to 80 as int32.
  std::vector<std::int32_t> tokens(11);
  for (int i = 0; i < 11; ++i) {
    tokens[static_cast<std::size_t>(i)] = 70 + i;
  }
  EXPECT_EQ(times.count("7 " + hash_of(std::as_bytes(std::span(tokens))).hex()), 1U);
}

TEST_F(BatchLoaderTest, EndsALineOfTheTraceThatACrashCutOff) {
  write_file_atomic(folder_ / "trace.rank0", "0 0 1 abc\n0 0 5 1f");
  BatchLoaderOptions traced = options();
  traced.trace = folder_ / "trace";
  BatchLoader loader(traced);
  for (int i = 0; i < 4; ++i) {
    static_cast<void>(loader.next());
  }
  EXPECT_THAT(read_file(folder_ / "trace.rank0"), testing::StartsWith("0 0 1 abc\n0 0 5 1f\n0 0 "));
}

TEST_F(BatchLoaderTest, ThrowsTheReadersErrorInNext) {
  BatchLoaderOptions missing = options();
  missing.dataset = folder_ / "nowhere";
  BatchLoader loader(missing);
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(loader.next()); }),
                HasSubstr("is not a dataset"));
  }
  BatchLoaderOptions too_long = options();
  too_long.sequence = 1001;
  BatchLoader long_loader(too_long);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(long_loader.next()); }),
              HasSubstr("the dataset has 1001 tokens, a sample of sequence 1001 needs 1002"));
}

TEST_F(BatchLoaderTest, HandsOutWhatWasReadBeforeAnError) {
  // An id outside the vocabulary in the last sample; the steps before the one that holds it are fine.
  const Sampler sampler({10, 1, 1, 3});
  std::vector<std::uint32_t> tokens = counting_tokens(101);
  tokens[95] = 500;
  static_cast<void>(write_small_dataset(folder_ / "bad", tokens, {101}, 200));
  std::uint64_t bad_step = 0;
  while (sampler.sample(bad_step, 0, 0) != 9) {
    ++bad_step;
  }
  BatchLoaderOptions bad = options();
  bad.dataset = folder_ / "bad";
  bad.micro_batches = 1;
  bad.micro_batch_size = 1;
  BatchLoader loader(bad);
  for (std::uint64_t step = 0; step < bad_step; ++step) {
    EXPECT_EQ(loader.next().step, step);
  }
  EXPECT_THAT(message_of_error(ErrorCode::kCorrupt, [&] { static_cast<void>(loader.next()); }),
              HasSubstr("token 95 is 500, the vocabulary has 200 ids"));
}

TEST_F(BatchLoaderTest, RefusesARankWithoutMicroBatches) {
  BatchLoaderOptions crowded = options();
  crowded.world = 8;
  BatchLoader loader(crowded);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { static_cast<void>(loader.next()); }),
              HasSubstr("rank 0 of 8 has none of the 4 micro-batches"));
}

TEST_F(BatchLoaderTest, GivesUpWhenInterrupted) {
  BatchLoader loader(options());
  static_cast<void>(loader.next());
  loader.interrupt();
  EXPECT_THAT(message_of_error(ErrorCode::kTimeout,
                               [&] {
                                 for (int i = 0; i < 4; ++i) {
                                   static_cast<void>(loader.next());
                                 }
                               }),
              HasSubstr("was interrupted"));
}

TEST_F(BatchLoaderTest, StopsAtOnceWhateverTheReaderIsDoing) {
  for (int i = 0; i < 50; ++i) {
    const BatchLoader loader(options());
    std::this_thread::sleep_for(std::chrono::microseconds(i * 20));
  }
}

TEST_F(BatchLoaderTest, CountsTheTimeItWasWaitedFor) {
  BatchLoader loader(options());
  static_cast<void>(loader.next());
  EXPECT_GT(loader.take_blocked_ms(), 0.0);
  for (int i = 0; i < 3; ++i) {
    static_cast<void>(loader.next());  // of the same step
  }
  EXPECT_EQ(loader.take_blocked_ms(), 0.0);
}

TEST_F(BatchLoaderTest, EvaluatesEverySampleOnceInOrder) {
  // 100 samples in batches of 3: the last has one.
  EvaluationBatches batches({folder_ / "d", 10, false, 3, 0});
  ASSERT_EQ(batches.count(), 34U);
  std::int64_t targets = 0;
  for (std::uint64_t i = 0; i < batches.count(); ++i) {
    const TokenBatch& batch = batches.read(i);
    targets += batch.target_tokens;
    EXPECT_EQ(batch.inputs[0], static_cast<std::int32_t>(i * 30));
    EXPECT_EQ(batch.targets[9], static_cast<std::int32_t>(i * 30 + 10));
  }
  EXPECT_EQ(targets, 1000);
  const TokenBatch& last = batches.read(33);
  EXPECT_EQ(last.target_tokens, 10);
  EXPECT_EQ(last.inputs[10], 0);
  EXPECT_EQ(last.targets[9], 1000);
  EXPECT_EQ(last.targets[10], -1);
  EXPECT_EQ(last.targets[29], -1);
  EXPECT_EQ(EvaluationBatches({folder_ / "d", 10, false, 3, 5}).count(), 5U);
}

}  // namespace
}  // namespace lockstep
