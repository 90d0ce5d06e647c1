#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>

#include "base/file.h"
#include "base/half.h"
#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "tests/trainer/checkpoint/training_state.h"
#include "trainer/checkpoint/inspect.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TrainingState loaded(const std::filesystem::path& checkpoint, const ParameterLayout& layout) {
  TrainingState state = TrainingState::unset(layout);
  CheckpointReader(checkpoint).load(layout, state.destination());
  return state;
}

struct RoundTrip {
  int world;
  DType model_dtype;
  bool background;
};

class RoundTripTest : public testing::TestWithParam<RoundTrip> {};

TEST_P(RoundTripTest, GivesBackTheSameBitsAndTheSameDigest) {
  const TemporaryFolder folder;
  const TrainingState state(small_layout());
  const auto [world, model_dtype, background] = GetParam();
  SaveSettings settings;
  settings.world = world;
  settings.model_dtype = model_dtype;
  settings.background = background;
  const auto checkpoint = save_checkpoint(folder.path(), state, 200, settings);

  const TrainingState back = loaded(checkpoint, state.layout);
  EXPECT_EQ(back.master, state.master);
  EXPECT_EQ(back.exp_avg, state.exp_avg);
  EXPECT_EQ(back.exp_avg_sq, state.exp_avg_sq);
  EXPECT_EQ(CheckpointReader(checkpoint).manifest().digest.hex(), state.digest().hex());
  EXPECT_EQ(recompute_digest(checkpoint).hex(), state.digest().hex());
}

TEST_P(RoundTripTest, LoadsIntoAnotherOrderAndAnyNumberOfShards) {
  const TemporaryFolder folder;
  const TrainingState state(small_layout());
  const auto [world, model_dtype, background] = GetParam();
  SaveSettings settings;
  settings.world = world;
  settings.model_dtype = model_dtype;
  settings.background = background;
  const CheckpointReader reader(save_checkpoint(folder.path(), state, 200, settings));

  const TrainingState expected(reversed_layout());
  for (const int shards : {1, 2, 3, 4, 8}) {
    TrainingState back = TrainingState::unset(reversed_layout());
    for (int rank = 0; rank < shards; ++rank) {
      const ElementRange range = back.layout.shard(rank, shards);
      const auto share = [range](std::vector<float>& values) {
        return std::span(values).subspan(range.begin, range.size());
      };
      reader.load(back.layout, {range, share(back.master), share(back.exp_avg), share(back.exp_avg_sq)});
    }
    EXPECT_EQ(back.master, expected.master) << shards;
    EXPECT_EQ(back.exp_avg, expected.exp_avg) << shards;
    EXPECT_EQ(back.exp_avg_sq, expected.exp_avg_sq) << shards;
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, RoundTripTest,
                         testing::Values(RoundTrip{1, DType::kF32, false}, RoundTrip{2, DType::kF32, true},
                                         RoundTrip{3, DType::kF32, false}, RoundTrip{4, DType::kF32, true},
                                         RoundTrip{8, DType::kF32, true}, RoundTrip{1, DType::kBF16, true},
                                         RoundTrip{2, DType::kBF16, false}, RoundTrip{4, DType::kBF16, true},
                                         RoundTrip{8, DType::kBF16, false}, RoundTrip{2, DType::kF16, true}),
                         [](const auto& row) {
                           return std::string(name_of(row.param.model_dtype)) + "_" + std::to_string(row.param.world) +
                                  (row.param.background ? "_background" : "_foreground");
                         });

TEST(Checkpoint, HoldsTheFilesThatHuggingFaceExpectsUnderItsNames) {
  const TemporaryFolder folder;
  const TrainingState state(small_layout());
  const auto checkpoint = save_checkpoint(folder.path(), state, 7, {.world = 2});
  EXPECT_EQ(checkpoint.filename(), "step-00000007");
  EXPECT_THAT(names_in(checkpoint),
              ElementsAre("config.json", "manifest.json", "model.safetensors", "state-00000-of-00002.safetensors",
                          "state-00001-of-00002.safetensors", "tokenizer.json"));
  const SafetensorsFile model(checkpoint / "model.safetensors");
  EXPECT_EQ(model.header().metadata.at("format"), "pt");
  EXPECT_EQ(model.header().tensors.size(), 7U);
  const SafetensorsTensor& k = model.get("attn.k.weight");
  EXPECT_THAT(k.shape, ElementsAre(16, 20));
  std::vector<float> values(k.count());
  model.read_f32(k, 0, values);
  const auto expected = std::span(state.master).subspan(state.layout.offset(1) + 320, 320);
  EXPECT_TRUE(std::equal(values.begin(), values.end(), expected.begin()));
}

TEST(Checkpoint, OfANarrowRunHoldsRoundedWeightsForOthersAndMasterWeightsForItself) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const TemporaryFolder folder;
    const TrainingState state(small_layout());
    const auto checkpoint = save_checkpoint(folder.path(), state, 7, {.world = 2, .model_dtype = dtype});
    std::vector<float> weights(state.layout.total());
    load_weights(checkpoint, state.layout, weights);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const float value = state.master[i];
      ASSERT_EQ(weights[i],
                dtype == DType::kF16 ? static_cast<float>(Float16(value)) : static_cast<float>(BFloat16(value)))
          << i;
    }
    EXPECT_EQ(loaded(checkpoint, state.layout).master, state.master);
  }
}

TEST(Checkpoint, RemembersWhereTheRunWas) {
  const TemporaryFolder folder;
  SimulatedJob job(folder.path(), small_layout(), {.world = 4});
  RunPosition position = position_at(300);
  position.validation_loss = 1.5;
  ASSERT_TRUE(job.save(TrainingState(small_layout()), position).published);
  const CheckpointReader reader(folder.path() / "step-00000300");
  const Manifest& manifest = reader.manifest();
  EXPECT_EQ(manifest.position.step, 300U);
  EXPECT_EQ(manifest.position.samples, 4800U);
  EXPECT_EQ(manifest.position.tokens, 1228800U);
  EXPECT_EQ(manifest.position.seed, 1337U);
  EXPECT_EQ(manifest.position.validation_loss, 1.5);
  EXPECT_EQ(manifest.position.config_text, "run:\n  name: \"small\"\n");
  EXPECT_EQ(manifest.position.extra_json, R"({"best":{"step":100,"validation_loss":1.25}})");
  EXPECT_EQ(manifest.world, 4);
}

TEST(Checkpoint, IsWhatTheSpecificationPrintsForItsExample) {
  const TemporaryFolder folder;
  const ParameterLayout layout({{"b", {3}, false, {{"bias", {3}, 0}}},
                                {"w", {4, 5}, true, {{"q.weight", {2, 5}, 0}, {"k.weight", {2, 5}, 10}}}});
  TrainingState state(layout);
  for (std::size_t i = 0; i < layout.size(); ++i) {
    for (std::uint64_t k = 0; k < layout.count(i); ++k) {
      state.master[layout.offset(i) + k] = static_cast<float>(k) + 1.0F;
      state.exp_avg[layout.offset(i) + k] = 0.5F * static_cast<float>(k);
      state.exp_avg_sq[layout.offset(i) + k] = 0.25F;
    }
  }
  RunPosition position = position_at(200);
  position.config_text = "run: {name: example}\n";
  position.extra_json = "{}";
  ASSERT_TRUE(SimulatedJob(folder.path(), layout, {.world = 2}).save(state, position).published);
  EXPECT_THAT(read_file(LOCKSTEP_SPECIFICATION),
              HasSubstr("```\n" + read_file(folder.path() / "step-00000200" / "manifest.json") + "```\n"));
}

// The values of the step at which the save began, not of the step at which a thread got round to writing.
TEST(Checkpoint, HoldsTheValuesOfTheMomentWhenTheSaveBegan) {
  const TemporaryFolder folder;
  TrainingState state(small_layout());
  const Hash128 digest = state.digest();
  SimulatedJob job(folder.path(), state.layout, {.world = 2, .background = true});
  job.begin(state, position_at(1));
  for (auto* values : {&state.master, &state.exp_avg, &state.exp_avg_sq}) {
    std::fill(values->begin(), values->end(), -7.0F);
  }
  ASSERT_TRUE(job.finish().published);
  EXPECT_EQ(CheckpointReader(folder.path() / "step-00000001").manifest().digest.hex(), digest.hex());
  EXPECT_EQ(recompute_digest(folder.path() / "step-00000001").hex(), digest.hex());
}

TEST(Checkpoint, IsInvisibleUntilEveryRankHasWritten) {
  const TemporaryFolder folder;
  const TrainingState state(small_layout());
  SimulatedJob job(folder.path(), state.layout, {.world = 2, .background = true});
  job.begin(state, position_at(1));
  job.writer(0).wait();
  job.writer(1).wait();
  std::vector<SaveReport> reports = {job.writer(0).report(), job.writer(1).report()};
  EXPECT_EQ(reports[0].state, SaveState::kWritten);
  reports[1].state = SaveState::kWriting;
  EXPECT_EQ(job.writer(0).advance(reports), std::nullopt);
  job.writer(0).wait();
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001.partial"));
  EXPECT_FALSE(find_latest_checkpoint(folder.path(), [](const DamagedCheckpoint&) {}).has_value());
  EXPECT_TRUE(job.finish().published);
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000001"));
}

TEST(Checkpoint, KeepsToItsWritingRate) {
  const TemporaryFolder folder;
  const ParameterLayout layout({{"w", {1'500'000}, true, {}}});  // 18 MB in pieces of 4 MiB
  const auto start = std::chrono::steady_clock::now();
  save_checkpoint(folder.path(), TrainingState(layout), 1, {.background = true, .max_mb_per_s = 60});
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_GT(elapsed.count(), 0.2);  // the last piece may begin when all others are due: (18 - 4.2) / 60
}

TEST(Checkpoint, EndsAtOnceWhenTheWriterIsDestroyedWhileWriting) {
  const TemporaryFolder folder;
  const ParameterLayout layout({{"w", {1'500'000}, true, {}}});
  const TrainingState state(layout);
  const auto start = std::chrono::steady_clock::now();
  {
    SimulatedJob job(folder.path(), layout, {.background = true, .max_mb_per_s = 0.1});
    job.begin(state, position_at(1));
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count(), 5.0);
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "step-00000001"));
}

TEST(Checkpoint, ReplacesAnEarlierOneOfTheSameStep) {
  const TemporaryFolder folder;
  save_checkpoint(folder.path(), TrainingState(small_layout(), 1), 5, {.world = 4});
  const TrainingState second(small_layout(), 2);
  const auto checkpoint = save_checkpoint(folder.path(), second, 5, {.world = 2});
  EXPECT_THAT(names_in(folder.path()), ElementsAre("step-00000005"));
  EXPECT_EQ(CheckpointReader(checkpoint).manifest().digest, second.digest());
  EXPECT_EQ(names_in(checkpoint).size(), 6U);
}

TEST(Checkpoint, DropsWhatAnEarlierAttemptLeftInThePartialFolder) {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder.path() / "step-00000005.partial" / "state-00007-of-00008.safetensors");
  const auto checkpoint = save_checkpoint(folder.path(), TrainingState(small_layout()), 5);
  EXPECT_THAT(names_in(checkpoint), ElementsAre("config.json", "manifest.json", "model.safetensors",
                                                "state-00000-of-00001.safetensors", "tokenizer.json"));
}

TEST(Checkpoint, RefusesAModelWhoseParametersDiffer) {
  const TemporaryFolder folder;
  const CheckpointReader reader(save_checkpoint(folder.path(), TrainingState(small_layout()), 5));
  const auto complaint = [&](std::size_t index, const ParameterSpec* replacement) {
    auto specs = small_layout().specs();
    specs.erase(specs.begin() + static_cast<std::ptrdiff_t>(index));
    if (replacement != nullptr) {
      specs.insert(specs.begin(), *replacement);
    }
    TrainingState state = TrainingState::unset(ParameterLayout(specs));
    return message_of_error(ErrorCode::kUsage, [&] { reader.load(state.layout, state.destination()); });
  };
  const ParameterSpec wider{"embedding", {302, 9}, true, {}};
  EXPECT_THAT(complaint(4, &wider),
              HasSubstr("parameter \"embedding\" has shape [301, 9] in the checkpoint, [302, 9] in the model"));
  const ParameterSpec renamed{"bias", {37}, false, {}};
  EXPECT_THAT(complaint(0, &renamed), HasSubstr("parameter \"bias\" of shape [37] is not in the checkpoint"));
  EXPECT_THAT(complaint(0, nullptr), HasSubstr("parameter \"head.bias\" of shape [37] is not in the model"));
}

TEST(Checkpoint, RefusesSourcesOfTheWrongSizeAndASecondSaveWhileBusy) {
  const TemporaryFolder folder;
  const TrainingState state(small_layout());
  SimulatedJob job(folder.path(), state.layout, {});
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { job.writer(0).begin(position_at(1), {}); }),
              HasSubstr("was given 0, 0 and 0 elements of exp_avg"));
  job.begin(state, position_at(1));
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { job.begin(state, position_at(2)); }),
              HasSubstr("step 2 is to be saved while step 1 still is"));
  EXPECT_TRUE(job.finish().published);
}

TEST(BalancedRange, SharesTheBytesEquallyBetweenTheRanks) {
  const ParameterLayout layout({{"w", {1 << 20}, true, {}}});
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const double model = static_cast<double>(size_of(dtype)) * static_cast<double>(layout.total());
    const double state_bytes = dtype == DType::kF32 ? 8 : 12;
    for (const int world : {1, 2, 3, 4, 8}) {
      std::uint64_t covered = 0;
      std::vector<double> bytes;
      for (int rank = 0; rank < world; ++rank) {
        const ElementRange range = balanced_range(layout, rank, world, dtype);
        EXPECT_EQ(range.begin, covered);
        covered = range.end;
        bytes.push_back((rank == 0 ? model : 0) + state_bytes * static_cast<double>(range.size()));
      }
      EXPECT_EQ(covered, layout.total());
      const double fair = (model + state_bytes * static_cast<double>(layout.total())) / world;
      EXPECT_NEAR(bytes[0], std::max(fair, model), 400.0);
      EXPECT_LE(bytes.back(), fair + 400.0);
    }
  }
}

TEST(Inspect, DescribesAnIntactCheckpoint) {
  const TemporaryFolder folder;
  const TrainingState state(small_layout());
  const auto checkpoint = save_checkpoint(folder.path(), state, 9, {.world = 2});
  const CheckpointDescription sizes = describe_checkpoint(checkpoint, InspectDepth::kSizes);
  EXPECT_TRUE(sizes.intact);
  EXPECT_FALSE(sizes.verified);
  const CheckpointDescription all = describe_checkpoint(checkpoint, InspectDepth::kContents);
  EXPECT_TRUE(all.intact);
  EXPECT_TRUE(all.verified);
  EXPECT_EQ(all.manifest.digest, state.digest());
  EXPECT_EQ(all.files.size(), 5U);
  EXPECT_THAT(
      message_of_error(ErrorCode::kUsage, [&] { (void)describe_checkpoint(folder.path(), InspectDepth::kSizes); }),
      HasSubstr("not a checkpoint: manifest.json is missing"));
}

}  // namespace
}  // namespace lockstep
