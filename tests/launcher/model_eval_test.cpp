// lockstep eval: losses, and answers beside those of a dataset.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "tests/data/small_dataset.h"
#include "tests/launcher/model_commands_fixture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::EndsWith;
using testing::HasSubstr;

TEST_F(ModelCommandsTest, RefuseToEvaluateWhatDoesNotFitTheModel) {
  const ProcessResult sequence = eval({"--sequence", "33"}, checkpoint());
  EXPECT_EQ(sequence.exit_code, 2);
  EXPECT_EQ(sequence.err, "lockstep eval: --sequence is 33; expected at most the model's context, 32\n");

  static_cast<void>(write_small_dataset(job_->folder() / "foreign", counting_tokens(100), {100}));
  const ProcessResult foreign = eval({"--data", job_->folder() / "foreign"}, checkpoint());
  EXPECT_EQ(foreign.exit_code, 2);
  EXPECT_EQ(foreign.err, "lockstep eval: " + (job_->folder() / "foreign").string() +
                             " was packed with the tokenizer counting, which is not the model's in " +
                             checkpoint().string() + "\n");

  static_cast<void>(write_small_dataset(job_->folder() / "short", counting_tokens(32), {32}));
  const ProcessResult too_short = eval({"--data", job_->folder() / "short"}, checkpoint());
  EXPECT_EQ(too_short.exit_code, 2);
  EXPECT_EQ(too_short.err, "lockstep eval: " + (job_->folder() / "short").string() +
                               " holds 32 tokens; a sample of 32 needs 33, see --sequence\n");
}

TEST_F(ModelCommandsTest, PrintJsonOfPathsThatAreNotUtf8) {
  const fs::path folder = job_->folder() / "model-\xff";
  fs::create_directory_symlink(checkpoint(), folder);
  const ProcessResult result = eval({"--json", "--batches", "1"}, folder);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(nlohmann::json::parse(result.out).at("model").get<std::string>(), EndsWith("model-\xef\xbf\xbd"));
}

// On a model that was trained to say two things, and asked for more than these.
TEST_F(ModelCommandsTest, EvaluateAnswersBesideThoseOfADataset) {
  const auto pack = [](const std::string& name, const std::string& conversations) {
    write_file_atomic(job_->folder() / (name + ".jsonl"), conversations);
    const ProcessResult packed =
        lockstep("pack", {"--format", "chat", "--template", "default", "--tokenizer", "bytes", "--split", "1", "--out",
                          job_->folder() / name, job_->folder() / (name + ".jsonl")});
    ASSERT_EQ(packed.exit_code, 0) << packed.err;
  };
  pack("said", R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"},
                                {"role": "user", "content": "bye"}, {"role": "assistant", "content": "see you some day "}]}
                  {"instruction": "more", "output": "is less"})");
  pack("other", R"({"instruction": "more", "output": "is more"})");
  std::string unknown;
  for (int i = 0; i < 19; ++i) {
    unknown += fmt::format(R"({{"instruction": "question {}", "output": "\u4f60\u597d"}})", i) + "\n";
  }
  pack("unknown", unknown);
  const auto data = [](const std::string& name) { return job_->folder() / name / "train"; };
  const ProcessResult trained = job_->train(
      {"said",
       1,
       {"data.train=" + data("said").string(), "data.valid=" + data("said").string(), "evaluate.every_steps=150",
        "train.steps=150", "model.context=80", "model.dropout=0", "optimizer.lr=0.01"}});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const fs::path model = job_->folder() / "runs" / "said";
  const auto answers = [&](const std::string& name, Words options, int ranks = 1) {
    Words words = {LOCKSTEP_MPIRUN,  std::to_string(ranks),
                   LOCKSTEP_PROGRAM, "eval",
                   "--model",        model,
                   "--data",         data(name),
                   "--threads",      "1",
                   "--json",         "--generate"};
    words.insert(words.end(), options.begin(), options.end());
    const ProcessResult result = run_process(words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  };

  // The answers' tokens are bytes, and one that ends each.
  const auto loss = nlohmann::json::parse(eval({"--json", "--data", data("said")}, model).out);
  EXPECT_EQ(loss.at("tokens"), 3 + 18 + 8);
  EXPECT_EQ(loss.at("accuracy"), 1);
  const std::string metrics = read_file(model / "metrics.jsonl");
  EXPECT_THAT(metrics, HasSubstr(R"("accuracy": 1, "valid_tokens": 29})"));

  const fs::path file = job_->folder() / "predictions.jsonl";
  const nlohmann::json said = answers("said", {"--predictions", file});
  for (const char* score : {"exact_match", "bleu", "bleu_4", "rouge_1", "rouge_2", "rouge_l"}) {
    EXPECT_NEAR(said.at(score).get<double>(), 100, 1e-9) << score;
  }
  EXPECT_EQ(said.at("answers"), 2);
  EXPECT_EQ(said.at("unfinished"), 0);
  EXPECT_EQ(
      read_file(file),
      R"({"prompt":"Human: hi<|endoftext|>\nAssistant:yo<|endoftext|>\nHuman: bye<|endoftext|>\nAssistant:",)"
      R"("reference":"see you some day ",)"
      R"("prediction":"see you some day ","exact":true})"
      "\n"
      R"({"prompt":"Human: more<|endoftext|>\nAssistant:","reference":"is less","prediction":"is less","exact":true})"
      "\n");
  EXPECT_EQ(answers("said", {"--samples", "1", "--max-tokens", "16"}).at("unfinished"), 1);
  EXPECT_EQ(answers("said", {"--samples", "1", "--max-tokens", "16"}).at("exact_match"), 100);  // trimmed

  const nlohmann::json other = answers("other", {});
  EXPECT_EQ(other.at("exact_match"), 0);
  EXPECT_EQ(other.at("bleu"), 0);  // two words make no four-gram
  EXPECT_NEAR(other.at("bleu_4").get<double>(), 100 * std::pow(4.0 / 7 * 2 / 6 * 1 / 5 * 1 / 8, 0.25), 1e-9);
  EXPECT_NEAR(other.at("rouge_1").get<double>(), 50, 1e-9);
  EXPECT_EQ(other.at("rouge_2"), 0);

  // More than a round of each rank.
  const fs::path file_of_two = job_->folder() / "predictions-2.jsonl";
  const Words drawn = {"--temperature", "2", "--max-tokens", "5", "--predictions"};
  const auto with = [&](const fs::path& path) {
    Words words = drawn;
    words.emplace_back(path);
    return words;
  };
  EXPECT_EQ(answers("unknown", with(file_of_two), 2), answers("unknown", with(file)));
  const std::string lines = read_file(file);
  EXPECT_EQ(read_file(file_of_two), lines);
  std::size_t at = 0;
  for (int i = 0; i < 19; ++i) {
    at = lines.find(fmt::format(R"({{"prompt":"Human: question {}<|endoftext|>\nAssistant:",)", i), at);
    ASSERT_NE(at, std::string::npos) << i;
  }
}

TEST_F(ModelCommandsTest, RefuseToAnswerWhereThereIsNothingToAnswer) {
  const auto refusal = [](const Words& options) {
    const ProcessResult result = eval(options, checkpoint());
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    return result.err;
  };
  EXPECT_EQ(refusal({"--generate"}), "lockstep eval: " + (job_->folder() / "data" / "valid").string() +
                                         " holds text; expected conversations to answer in\n");
  const fs::path nowhere = job_->folder() / "nowhere";
  EXPECT_EQ(refusal({"--generate", "--predictions", nowhere / "x.jsonl"}),
            "lockstep eval: --predictions: there is no folder " + nowhere.string() + "\n");
  EXPECT_EQ(refusal({"--generate", "--predictions", job_->folder()}),
            "lockstep eval: --predictions: " + job_->folder().string() + " is a folder, expected the name of a file\n");
  EXPECT_EQ(refusal({"--generate", "--predictions", "/dev/null"}),
            "lockstep eval: --predictions: /dev/null is there and no file, expected the name of a file\n");
  EXPECT_EQ(refusal({"--samples", "3"}), "lockstep eval: --samples requires --generate\n");
  EXPECT_EQ(refusal({"--temperature", "1"}), "lockstep eval: --temperature requires --generate\n");
  EXPECT_EQ(refusal({"--generate", "--batches", "3"}), "lockstep eval: --batches excludes --generate\n");
}

TEST_F(ModelCommandsTest, EvaluateToTheSameBitsOnOneAndTwoRanks) {
  const Words eval = {LOCKSTEP_PROGRAM, "eval",      "--model", run(), "--data", job_->folder() / "data" / "valid",
                      "--json",         "--threads", "1"};
  Words two = {LOCKSTEP_MPIRUN, "2"};
  two.insert(two.end(), eval.begin(), eval.end());
  const ProcessResult one_rank = run_process(eval);
  const ProcessResult two_ranks = run_process(two);
  ASSERT_EQ(one_rank.exit_code, 0) << one_rank.err;
  ASSERT_EQ(two_ranks.exit_code, 0) << two_ranks.err;
  EXPECT_EQ(two_ranks.out, one_rank.out);
  const auto json = nlohmann::json::parse(one_rank.out);
  EXPECT_GT(json.at("loss").get<double>(), 0);
  EXPECT_EQ(json.at("tokens").get<int>() % 32, 0);  // whole samples
}

}  // namespace
}  // namespace lockstep
