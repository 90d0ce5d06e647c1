#include "trainer/formats/hf_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/error_matcher.h"
#include "tests/support/temporary_folder.h"
#include "trainer/formats/hashing_file.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::filesystem::path kSharded = std::filesystem::path(LOCKSTEP_GOLDEN_FORMATS) / "sharded";

ParameterLayout sharded_layout(std::vector<std::int64_t> b_shape = {4}) {
  return ParameterLayout({{"c", {1}, false, {{"model.c.bias", {1}, 0}}},
                          {"b", b_shape, false, {{"model.b.weight", b_shape, 0}}},
                          {"a", {2, 3}, true, {{"model.a.weight", {2, 3}, 0}}}});
}

void write_text(const std::filesystem::path& path, const std::string& text) { std::ofstream(path) << text; }

void write_f32(const std::filesystem::path& path, const std::vector<std::string>& names) {
  std::vector<SafetensorsTensor> tensors;
  for (const std::string& name : names) {
    tensors.push_back({name, SafetensorsType::kF32, {2}, 0, 0});
  }
  HashingFileWriter writer(path);
  writer.write(SafetensorsLayout(tensors, {}).head);
  for (std::size_t i = 0; i < names.size(); ++i) {
    const float value = static_cast<float>(i) + 0.5F;
    const std::vector<float> values = {value, -value};
    writer.write(std::as_bytes(std::span(values)));
  }
  writer.sync();
}

// The files are Hugging Face's own: tests/golden/formats/make_safetensors.py.
TEST(HfWeights, LoadsShardsOfThreeTypesThroughTheirIndex) {
  const ParameterLayout layout = sharded_layout();
  std::vector<float> weights(layout.total(), 99.0F);
  load_hf_weights(kSharded, layout, weights);
  EXPECT_EQ(weights[0], -1.0F);
  EXPECT_EQ(weights[1], 0.0F);  // padding
  EXPECT_THAT(std::span(weights).subspan(16, 4), ElementsAre(10, 11, 12, 13));
  EXPECT_THAT(std::span(weights).subspan(32, 6), ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(HfWeights, JoinsTheTensorsOfAFusedParameter) {
  const TemporaryFolder folder;
  write_f32(folder.path() / "model.safetensors", {"k", "unused", "q"});
  const ParameterLayout layout({{"qk", {4}, true, {{"q", {2}, 0}, {"k", {2}, 2}}}});
  std::vector<float> weights(layout.total());
  load_hf_weights(folder.path(), layout, weights);
  EXPECT_THAT(std::span(weights).first(4), ElementsAre(2.5F, -2.5F, 0.5F, -0.5F));
}

TEST(HfWeights, FindsTensorsSavedWithoutTheModelsPrefix) {
  const TemporaryFolder folder;
  write_f32(folder.path() / "model.safetensors", {"wte.weight"});
  const ParameterLayout layout({{"wte", {2}, true, {{"transformer.wte.weight", {2}, 0}}}});
  std::vector<float> weights(layout.total());
  load_hf_weights(folder.path() / "model.safetensors", layout, weights);
  EXPECT_EQ(weights[0], 0.5F);
}

TEST(HfWeights, NamesAMissingTensorAndAnotherShapeAndChangesNothing) {
  std::vector<float> weights(sharded_layout().total(), 7.0F);
  EXPECT_THAT(message_of_error(ErrorCode::kUsage,
                               [&] {
                                 load_hf_weights(kSharded, sharded_layout({2, 2}), weights);
                               }),
              HasSubstr("tensor \"model.b.weight\" has shape [4], expected [2, 2]"));
  EXPECT_EQ(weights, std::vector<float>(weights.size(), 7.0F));
  const ParameterLayout other({{"x", {2}, false, {{"model.x", {2}, 0}}}});
  weights.resize(other.total());
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { load_hf_weights(kSharded, other, weights); }),
              HasSubstr("tensor \"model.x\" is missing"));
}

TEST(HfWeights, RefusesAFolderWithoutWeights) {
  const TemporaryFolder folder;
  std::vector<float> weights(sharded_layout().total());
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { load_hf_weights(folder.path(), sharded_layout(), weights); }),
              HasSubstr("found neither model.safetensors nor model.safetensors.index.json"));
}

TEST(HfWeights, RefusesAnIndexThatPointsOutOfItsFolder) {
  const TemporaryFolder folder;
  std::vector<float> weights(sharded_layout().total());
  const auto complaint = [&](const std::string& index) {
    write_text(folder.path() / "model.safetensors.index.json", index);
    return message_of_error(ErrorCode::kCorrupt, [&] { load_hf_weights(folder.path(), sharded_layout(), weights); });
  };
  EXPECT_THAT(complaint(R"({"weight_map": {"a": "../secret"}})"), HasSubstr("\"../secret\", which is not a file name"));
  EXPECT_THAT(complaint(R"({"weight_map": {"a": 1}})"), HasSubstr("which is not a file name"));
  EXPECT_THAT(complaint(R"({"weight_map": []})"), HasSubstr("\"weight_map\" is missing"));
  EXPECT_THAT(complaint("garbage"), HasSubstr("not valid JSON"));
}

TEST(HfWeights, NamesATensorThatItsShardDoesNotHold) {
  const TemporaryFolder folder;
  write_f32(folder.path() / "shard", {"b"});
  write_text(folder.path() / "model.safetensors.index.json", R"({"weight_map": {"a": "shard"}})");
  std::vector<float> weights(sharded_layout().total());
  EXPECT_THAT(message_of_error(ErrorCode::kCorrupt, [&] { load_hf_weights(folder.path(), sharded_layout(), weights); }),
              HasSubstr("shard: tensor \"a\" is missing"));
}

}  // namespace
}  // namespace lockstep
