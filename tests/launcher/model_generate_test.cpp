// lockstep generate: where texts begin and end, and what they are drawn from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "tests/launcher/model_commands_fixture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST_F(ModelCommandsTest, EndATextCleanlyWhenAskedTo) {
  for (const int signal : {SIGINT, SIGTERM}) {
    Process process({LOCKSTEP_PROGRAM, "generate", "--model", run(), "--prompt", "w1", "--max-tokens", "100000000"});
    for (int i = 0; i < 3000 && process.is_running() && process.out().size() < 10; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    process.send(signal);
    const ProcessResult result = process.wait();
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.out, EndsWith("\n"));
    EXPECT_THAT(result.err, Not(HasSubstr("lockstep generate")));
  }
}

// The context is 32 tokens, a token is a byte.
TEST_F(ModelCommandsTest, SayHowMuchOfALongPromptIsForgotten) {
  const ProcessResult longer = generate({"--prompt", std::string(40, 'w')});
  EXPECT_EQ(longer.exit_code, 0);
  EXPECT_THAT(
      longer.err,
      HasSubstr("warning: the prompt has 40 tokens, the model's context holds 32: the first 8 are forgotten\n"));
  EXPECT_THAT(generate({"--prompt", std::string(32, 'w')}).err, Not(HasSubstr("forgotten")));
}

// With a prompt of a whole context, a token more shows in the warning.
TEST_F(ModelCommandsTest, BeginTheTextAsTheTokenizerSaysUnlessTheModelBeginsOtherwise) {
  const fs::path folder = hugging_face_folder("begins");
  const std::string prompt(32, 'w');
  EXPECT_THAT(generate({"--prompt", prompt}, folder).err, Not(HasSubstr("forgotten")));
  change_json(folder / "tokenizer.json", [](nlohmann::json& tokenizer) {
    tokenizer["post_processor"] = nlohmann::json::parse(R"({
      "type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
      "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [256], "tokens": ["<|endoftext|>"]}}})");
  });
  EXPECT_THAT(generate({"--prompt", prompt}, folder).err, HasSubstr("the prompt has 33 tokens"));
  // A prompt that says so itself begins once.
  EXPECT_THAT(generate({"--prompt", "<|endoftext|>" + prompt}, folder).err, HasSubstr("the prompt has 33 tokens"));
  change_json(folder / "config.json", [](nlohmann::json& config) { config["bos_token_id"] = nullptr; });
  EXPECT_THAT(generate({"--prompt", prompt}, folder).err, HasSubstr("the prompt has 33 tokens"));
  change_json(folder / "config.json", [](nlohmann::json& config) { config["bos_token_id"] = 10; });
  EXPECT_THAT(generate({"--prompt", prompt}, folder).err, Not(HasSubstr("forgotten")));
}

TEST_F(ModelCommandsTest, EndTheTextAtTheTokensThatTheModelNames) {
  const fs::path folder = hugging_face_folder("ends");
  const Words options = {"--no-echo", "--temperature", "5"};
  const std::string whole = generate(options, folder).out;
  ASSERT_GE(whole.size(), 10U);
  const auto id = static_cast<unsigned char>(whole[5]);
  const std::string expected = whole.substr(0, whole.find(whole[5])) + "\n";
  for (const nlohmann::json& ids : {nlohmann::json(id), nlohmann::json({256, id})}) {
    change_json(folder / "config.json", [&](nlohmann::json& config) { config["eos_token_id"] = ids; });
    EXPECT_EQ(generate(options, folder).out, expected) << ids;
  }
  change_json(folder / "config.json", [&](nlohmann::json& config) { config["eos_token_id"] = "a"; });
  const ProcessResult refused = generate(options, folder);
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err,
              HasSubstr("config.json: \"eos_token_id\" is \"a\", expected a token id or a list of them\n"));
}

TEST_F(ModelCommandsTest, GenerateTheSameTextFromTheSameSeedAndAnotherFromAnother) {
  const std::string once = text({"--temperature", "5", "--seed", "7"});
  EXPECT_THAT(once, StartsWith("w1 w7 "));
  EXPECT_EQ(text({"--temperature", "5", "--seed", "7"}), once);
  EXPECT_NE(text({"--temperature", "5", "--seed", "8"}), once);
  EXPECT_EQ("w1 w7 " + text({"--temperature", "5", "--seed", "7", "--no-echo"}), once);
}

TEST_F(ModelCommandsTest, GenerateTheLikeliestTextInThreeWays) {
  const std::string likeliest = text({"--temperature", "0"});
  EXPECT_EQ(text({"--temperature", "0", "--seed", "8"}), likeliest);
  EXPECT_EQ(text({"--temperature", "5", "--top-k", "1"}), likeliest);
  EXPECT_EQ(text({"--temperature", "5", "--top-p", "0.000001"}), likeliest);
  EXPECT_NE(text({"--temperature", "5"}), likeliest);
}

TEST_F(ModelCommandsTest, GenerateFromAnEmptyPromptAndFromBytesThatAreNoText) {
  const std::string started = text({"--prompt", "", "--temperature", "0"});
  EXPECT_GT(started.size(), 1U);
  EXPECT_EQ(text({"--prompt", "<|endoftext|>", "--temperature", "0", "--no-echo"}), started);
  EXPECT_THAT(text({"--prompt", "\xff\xfe\xc3"}), StartsWith("\xff\xfe\xc3"));
}

TEST_F(ModelCommandsTest, RefuseOptionsThatMeanNothing) {
  const ProcessResult cold = generate({"--temperature", "-1"});
  EXPECT_EQ(cold.exit_code, 2);
  EXPECT_THAT(cold.err, StartsWith("lockstep generate: --temperature"));
  const ProcessResult nowhere = generate({}, job_->folder() / "nowhere");
  EXPECT_EQ(nowhere.exit_code, 2);
  EXPECT_EQ(nowhere.err, "lockstep generate: " + (job_->folder() / "nowhere").string() +
                             ": no such folder; expected a run, a checkpoint, a Hugging Face folder or a GGUF file\n");
}

}  // namespace
}  // namespace lockstep
