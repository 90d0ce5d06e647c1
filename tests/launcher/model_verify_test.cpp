// lockstep verify: what an export has lost, and what is none.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/file.h"
#include "tests/launcher/model_commands_fixture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST_F(ModelCommandsTest, SayWhatAnExportHasLost) {
  Words exports;
  for (const std::string type : {"f32", "bf16", "q8_0", "q4_0"}) {
    exports.push_back(job_->folder() / ("lost-" + type + ".gguf"));
    ASSERT_EQ(lockstep("export", {"--model", run(), "--to", "gguf", "--type", type, "--out", exports.back()}).exit_code,
              0);
  }
  exports.push_back(job_->folder() / "lost-hf");
  ASSERT_EQ(
      lockstep("export", {"--model", run(), "--to", "safetensors", "--type", "f32", "--out", exports.back()}).exit_code,
      0);
  const auto verify = [&](const Words& options) {
    Words words = {run()};
    words.insert(words.end(), exports.begin(), exports.end());
    words.insert(words.end(), options.begin(), options.end());
    return lockstep("verify", words);
  };
  const ProcessResult result = verify({"--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json.at("positions"), 512);
  EXPECT_EQ(json.at("model").at("kind"), "checkpoint");
  const auto& rows = json.at("compared");
  ASSERT_EQ(rows.size(), 5U);
  for (const std::size_t exact : {0U, 4U}) {
    EXPECT_EQ(rows[exact].at("max_difference"), 0) << rows[exact];
    EXPECT_EQ(rows[exact].at("max_kl"), 0);
    EXPECT_EQ(rows[exact].at("same_top"), 1);
    EXPECT_EQ(rows[exact].at("perplexity"), json.at("model").at("perplexity"));
    EXPECT_EQ(rows[exact].at("type"), "F32");
  }
  EXPECT_EQ(rows[1].at("type"), "BF16");
  EXPECT_EQ(rows[2].at("type"), "Q8_0");
  EXPECT_EQ(rows[2].at("kind"), "gguf");
  EXPECT_EQ(rows[2].at("bytes"), fs::file_size(exports[2]));
  EXPECT_EQ(rows[4].at("kind"), "safetensors");
  const auto kl = [&](std::size_t row) { return rows[row].at("mean_kl").get<double>(); };
  EXPECT_GT(kl(1), 0);
  EXPECT_GT(kl(2), 0);
  EXPECT_LT(kl(2), 1e-3);
  EXPECT_GT(kl(3), 10 * kl(2));

  const ProcessResult table = verify({"--tokens", "100"});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, StartsWith("100 tokens of the built-in text, in 4 windows\nmodel "));
  EXPECT_EQ(std::count(table.out.begin(), table.out.end(), '\n'), 8);
  EXPECT_THAT(table.out, HasSubstr("100.0 %"));
  const ProcessResult failed = verify({"--max-kl", fmt::format("{}", (kl(2) + kl(3)) / 2)});
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_THAT(failed.err, AllOf(HasSubstr("lost-q4_0.gguf: the mean KL is "), Not(HasSubstr("q8_0"))));

  const std::string loss = eval({"--json", "--batches", "1", "--batch-size", "4"}).out;
  const auto of_data =
      nlohmann::json::parse(verify({"--json", "--data", job_->folder() / "data" / "valid", "--tokens", "128"}).out);
  EXPECT_NEAR(of_data.at("model").at("perplexity").get<double>(),
              nlohmann::json::parse(loss).at("perplexity").get<double>(), 1e-3);
}

TEST_F(ModelCommandsTest, RefuseToCompareWhatIsNoExportOfTheModel) {
  ASSERT_EQ(job_->train({"wide", 1, {"model.vocab=320", "train.steps=2"}}).exit_code, 0);
  const fs::path wide = job_->folder() / "runs" / "wide";
  const ProcessResult vocab = lockstep("verify", {run(), wide});
  EXPECT_EQ(vocab.exit_code, 2);
  EXPECT_THAT(vocab.err, HasSubstr(" has a vocabulary of 320, the model " + checkpoint().string() + " one of 257\n"));
  // Holes of the vocabulary have names in the file.
  const fs::path gguf = job_->folder() / "wide.gguf";
  ASSERT_EQ(lockstep("export", {"--model", wide, "--to", "gguf", "--type", "f32", "--out", gguf}).exit_code, 0);
  const ProcessResult padded = lockstep("verify", {wide, gguf, "--max-kl", "0"});
  EXPECT_EQ(padded.exit_code, 0) << padded.err;

  const fs::path other = hugging_face_folder("other-tokens");
  change_json(other / "tokenizer.json", [](nlohmann::json& tokenizer) {
    auto& tokens = tokenizer.at("model").at("vocab");
    std::swap(tokens.at("a"), tokens.at("b"));
  });
  const ProcessResult swapped = lockstep("verify", {run(), other});
  EXPECT_EQ(swapped.exit_code, 2);
  EXPECT_THAT(swapped.err, AllOf(HasSubstr(other.string() + " has another tokenizer than the model "),
                                 HasSubstr("; token 97 differs\n")));
  write_file_atomic(job_->folder() / "short.txt", "w");
  EXPECT_EQ(lockstep("verify", {run(), run(), "--text", job_->folder() / "short.txt"}).err,
            "lockstep verify: the text has 1 tokens, expected at least 2\n");
  EXPECT_EQ(lockstep("verify", {run(), run(), "--sequence", "33"}).err,
            "lockstep verify: --sequence is 33; expected at most the model's context, 32\n");
  EXPECT_EQ(lockstep("verify", {run()}).err, "lockstep verify: EXPORT is required\n");
}

}  // namespace
}  // namespace lockstep
