#include "trainer/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "tests/fuzz/checkpoint_targets.h"
#include "tests/support/error_matcher.h"
#include "tests/trainer/checkpoint/training_state.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

Manifest example() {
  Manifest manifest;
  manifest.position = position_at(200);
  manifest.world = 2;
  manifest.digest = {1, 2};
  manifest.layout = small_layout();
  manifest.files = {{"model.safetensors", 10, {3, 4}}, {"state-a", 20, {5, 6}}, {"state-b", 30, {7, 8}}};
  manifest.shards = {{"state-a", {0, 1600}}, {"state-b", {1600, manifest.layout.total()}}};
  return manifest;
}

std::string body_of(const Manifest& manifest) {
  const std::string text = manifest_text(manifest);
  return text.substr(0, text.find("\"checksum\""));
}

// The complaint about the example with `from` replaced by `to`, sealed again.
std::string complaint(const std::string& from, const std::string& to, ErrorCode code = ErrorCode::kCorrupt) {
  std::string body = body_of(example());
  const std::size_t at = body.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  body.replace(at, from.size(), to);
  return message_of_error(code, [&] { (void)parse_manifest(seal_manifest(body), "m"); });
}

TEST(Manifest, ReadsBackWhatItWrites) {
  const Manifest manifest = example();
  const std::string text = manifest_text(manifest);
  const Manifest back = parse_manifest(text, "m");
  EXPECT_EQ(manifest_text(back), text);
  EXPECT_EQ(back.layout.specs()[1].exports[2].hf_name, "attn.v.weight");
  EXPECT_EQ(back.layout.specs()[1].exports[2].offset_elements, 640);
  EXPECT_TRUE(back.layout.specs()[1].decay);
  EXPECT_EQ(back.shards[1].range, (ElementRange{1600, manifest.layout.total()}));
}

TEST(Manifest, IsPlainJsonToOtherPrograms) {
  const auto document = nlohmann::json::parse(manifest_text(example()));
  EXPECT_EQ(document["step"], 200);
  EXPECT_EQ(document["version"], 1);
  EXPECT_EQ(document["digest"], "00000000000000020000000000000001");
  EXPECT_EQ(document["files"][1]["name"], "state-a");
  EXPECT_EQ(document["validation_loss"], nullptr);
}

TEST(Manifest, WritesALossThatIsNoNumberAsNone) {
  Manifest manifest = example();
  manifest.position.validation_loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(parse_manifest(manifest_text(manifest), "m").position.validation_loss, std::nullopt);
}

TEST(Manifest, RefusesExtraValuesThatAreNoObject) {
  Manifest manifest = example();
  manifest.position.extra_json = "[1]";
  EXPECT_THAT(message_of_error(ErrorCode::kUsage, [&] { (void)manifest_text(manifest); }),
              HasSubstr("expected a JSON object"));
}

TEST(Manifest, NoticesEveryChangedByteAndEveryLength) {
  const std::string text = manifest_text(example());
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_THROW((void)parse_manifest(damaged, "m"), Error) << i;
    EXPECT_THROW((void)parse_manifest(text.substr(0, i), "m"), Error) << i;
  }
  EXPECT_THROW((void)parse_manifest(text + "\n", "m"), Error);
}

TEST(Manifest, RefusesAnotherVersionAsUnsupported) {
  EXPECT_EQ(complaint("\"version\": 1", "\"version\": 2", ErrorCode::kUnsupported),
            "m: format version 2, this program reads 1");
}

TEST(Manifest, SaysWhichValueIsWrong) {
  EXPECT_EQ(complaint("lockstep checkpoint", "something else"), "m: \"format\" is not that of a checkpoint");
  EXPECT_EQ(complaint("\"step\": 200", "\"step\": -200"), "m: \"step\" is not a non-negative integer");
  EXPECT_EQ(complaint("\"step\": 200", "\"stop\": 200"), "m: \"step\" is missing");
  EXPECT_EQ(complaint("\"seed\": 1337", "\"step\": 1337"), "m: key \"step\" stands twice");
  EXPECT_EQ(complaint("\"world\": 2", "\"world\": 0"), "m: \"world\" is not a number of ranks");
  EXPECT_EQ(complaint("\"f32\"", "\"f64\""), "m: \"model_dtype\" is not f32, bf16 or f16");
  EXPECT_EQ(complaint("\"0000000000000002", "\"000000000000000X"),
            "m: \"digest\" is not 32 lower-case hexadecimal digits");
  EXPECT_EQ(complaint("\"name\":\"state-a\"", "\"name\":\"../state-a\""),
            "m: \"files\": \"name\" is not the name of a file");
  EXPECT_EQ(complaint("\"name\":\"state-b\"", "\"name\":\"state-a\""), "m: \"files\": \"name\" is not named once");
  EXPECT_THAT(complaint("\"name\":\"model.safetensors\"", "\"name\":\"other\""),
              HasSubstr("model.safetensors is not among them"));
  EXPECT_EQ(complaint("\"file\":\"state-b\"", "\"file\":\"state-c\""),
            "m: \"state\": \"file\" is not one of \"files\"");
  EXPECT_EQ(complaint("\"begin\":1600", "\"begin\":1616"),
            "m: \"state\": \"begin\" is not where the state before it ends");
  EXPECT_THAT(complaint("\"begin\":1600", "\"begin\":1.6"), HasSubstr("is not a non-negative integer"));
  EXPECT_THAT(complaint("\"end\":3744", "\"end\":3728"), HasSubstr("does not cover the parameters"));
  EXPECT_THAT(complaint("\"shape\":[37]", "\"shape\":[-37]"), HasSubstr("\"shape\" is not a list of sizes"));
  EXPECT_THAT(complaint("\"shape\":[37]", "\"shape\":[38]"), HasSubstr("cover 37 of 38 elements"));
  EXPECT_THAT(complaint("\"offset\":48", "\"offset\":64"), HasSubstr("is said to begin at element 64, expected 48"));
}

TEST(Manifest, HandlesWhatTheFuzzerStartsFromAndFound) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(LOCKSTEP_FUZZ_CORPUS "/manifest")) {
    try_manifest(read_file(entry.path()));  // aborts when something is wrong
    ++files;
  }
  EXPECT_GT(files, 0);
}

TEST(StepFolderName, GoesBothWays) {
  EXPECT_EQ(step_folder_name(200), "step-00000200");
  EXPECT_EQ(step_folder_name(1'234'567'890), "step-1234567890");
  EXPECT_EQ(parse_step_folder_name("step-00000200"), 200U);
  EXPECT_EQ(parse_step_folder_name("step-1234567890"), 1'234'567'890U);
  for (const char* other : {"step-200", "step-00000200.partial", "step-", "step-0000020x", "other", "step--0000200",
                            "step-99999999999999999999999"}) {
    EXPECT_EQ(parse_step_folder_name(other), std::nullopt) << other;
  }
  EXPECT_EQ(state_file_name(1, 4), "state-00001-of-00004.safetensors");
}

}  // namespace
}  // namespace lockstep
