// lockstep generate and lockstep eval as people run them, on a small run that lockstep train made.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "tests/data/small_dataset.h"
#include "tests/support/training_job.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Words = std::vector<std::string>;

class ModelCommandsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN});
    const ProcessResult trained = job_->train({"r", 1, {"train.steps=12", "checkpoint.every_steps=6"}});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
  }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  static fs::path run() { return job_->folder() / "runs" / "r"; }
  static fs::path checkpoint() { return job_->checkpoints("r") / "step-00000012"; }

  static ProcessResult lockstep(const std::string& command, const Words& arguments) {
    Words words = {LOCKSTEP_PROGRAM, command};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run_process(words);
  }
  // 20 tokens, after "w1 w7 " unless `options` has a prompt.
  static ProcessResult generate(const Words& options, const fs::path& model = run()) {
    Words words = {"--model", model, "--max-tokens", "20"};
    words.insert(words.end(), options.begin(), options.end());
    if (std::ranges::find(options, "--prompt") == options.end()) {
      words.insert(words.end(), {"--prompt", "w1 w7 "});
    }
    return lockstep("generate", words);
  }
  static std::string text(const Words& options) {
    const ProcessResult result = generate(options);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  }
  static ProcessResult eval(const Words& options, const fs::path& model = run()) {
    Words words = {"--model", model};
    words.insert(words.end(), options.begin(), options.end());
    if (std::ranges::find(options, "--data") == options.end()) {
      words.insert(words.end(), {"--data", job_->folder() / "data" / "valid"});
    }
    return lockstep("eval", words);
  }

  // A copy of the run whose files may be changed.
  static fs::path copy_of_run(const std::string& name) {
    const fs::path copy = job_->folder() / "runs" / name;
    fs::copy(run(), copy, fs::copy_options::recursive);
    return copy;
  }
  // The checkpoint without its manifest: a model from elsewhere, whose files may be changed.
  static fs::path hugging_face_folder(const std::string& name) {
    const fs::path folder = job_->folder() / name;
    fs::create_directory(folder);
    for (const char* file : {"config.json", "tokenizer.json", "model.safetensors"}) {
      fs::copy_file(checkpoint() / file, folder / file);
    }
    return folder;
  }
  static void change_json(const fs::path& file, const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = nlohmann::json::parse(read_file(file));
    change(json);
    write_file_atomic(file, json.dump());
  }
  static void damage(const fs::path& file) { fs::resize_file(file, fs::file_size(file) - 1); }

  static inline TrainingJob* job_ = nullptr;
};

TEST_F(ModelCommandsTest, SayWhichDamagedCheckpointTheyPassOverAndWhichTheyTake) {
  const fs::path copy = copy_of_run("damaged-newest");
  const fs::path newest = copy / "checkpoints" / "step-00000012";
  const fs::path older = copy / "checkpoints" / "step-00000006";
  damage(newest / "model.safetensors");
  for (const ProcessResult& result : {generate({}, copy), eval({"--batches", "1"}, copy)}) {
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.err, StartsWith("warning: checkpoint " + newest.string() + " is damaged and not used: "));
    EXPECT_THAT(result.err, HasSubstr("model: " + older.string() + "\n"));
  }
}

TEST_F(ModelCommandsTest, AreSilentAboutAModelThatIsNamedItself) {
  EXPECT_THAT(generate({}, checkpoint()).err, Not(HasSubstr("model: ")));
}

TEST_F(ModelCommandsTest, RefuseARunWhoseCheckpointsAreAllDamaged) {
  const fs::path copy = copy_of_run("damaged-all");
  for (const auto& entry : fs::directory_iterator(copy / "checkpoints")) {
    damage(entry.path() / "model.safetensors");
  }
  for (const ProcessResult& result : {generate({}, copy), eval({}, copy)}) {
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err,
                HasSubstr((copy / "checkpoints").string() + ": none of 2 checkpoints is intact; the newest"));
    EXPECT_THAT(result.err, Not(HasSubstr("resume")));
  }
}

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

TEST_F(ModelCommandsTest, FailWhenTheirOutputCannotBeWritten) {
  const std::string program = LOCKSTEP_PROGRAM;
  const std::string options = " --model " + checkpoint().string();
  const std::string data = " --data " + (job_->folder() / "data" / "valid").string() + " --batches 1";
  const ProcessResult generated = run_process({"sh", "-c", program + " generate" + options + " >/dev/full"});
  EXPECT_EQ(generated.exit_code, 1);
  EXPECT_EQ(generated.err, "lockstep generate: write to stdout: No space left on device\n");
  for (const std::string format : {"", " --json"}) {
    const ProcessResult evaluated =
        run_process({"sh", "-c", program + " eval" + options + data + format + " >/dev/full"});
    EXPECT_EQ(evaluated.exit_code, 1);
    EXPECT_THAT(evaluated.err, EndsWith("lockstep eval: write to stdout: No space left on device\n"));
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

// A model that was trained to say one thing, asked through a pipe.
TEST_F(ModelCommandsTest, TalkWithAModelOfConversations) {
  const fs::path chats = job_->folder() / "chats.jsonl";
  const std::string hi = R"({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"})";
  const std::string bye = R"({"role": "user", "content": "bye"}, {"role": "assistant", "content": ")";
  write_file_atomic(chats,
                    "{\"messages\": [" + bye + "so long\"}]}\n{\"messages\": [" + hi + ", " + bye + "again\"}]}\n");
  ASSERT_EQ(lockstep("pack", {"--format", "chat", "--template", "default", "--tokenizer", "bytes", "--split", "1",
                              "--out", job_->folder() / "chats", chats})
                .exit_code,
            0);
  const ProcessResult trained = job_->train(
      {"chats",
       1,
       {"data.train=" + (job_->folder() / "chats" / "train").string(), "data.valid=", "evaluate.every_steps=0",
        "train.steps=150", "model.context=64", "model.dropout=0", "optimizer.lr=0.01"}});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const auto ask = [&](const std::string& questions, const std::string& options = "") {
    return run_process({"sh", "-c",
                        "printf '" + questions + "' | " + LOCKSTEP_PROGRAM + " chat --temperature 0 --model " +
                            (job_->folder() / "runs" / "chats").string() + " " + options});
  };
  EXPECT_EQ(ask("hi\\n\\nbye").out, "yo\nagain\n");
  EXPECT_EQ(ask("hi\\n/new\\nbye\\n").out, "yo\nso long\n");
  EXPECT_EQ(ask("").out, "");
  EXPECT_THAT(ask("hi\\n", "--template chatml").err,
              EndsWith("\nlockstep chat: the template chatml needs the token <|im_start|>, which the tokenizer "
                       "tokenizer.json does not have\n"));
  // A run's tokenizer, and the template in Jinja.
  const ProcessResult again =
      lockstep("pack", {"--format", "chat", "--template", "own", "--tokenizer", job_->folder() / "runs" / "chats",
                        "--split", "1", "--out", job_->folder() / "again", chats});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  const fs::path gguf = job_->folder() / "chats.gguf";
  ASSERT_EQ(
      lockstep("export", {"--model", job_->folder() / "runs" / "chats", "--to", "gguf", "--type", "f32", "--out", gguf})
          .exit_code,
      0);
  EXPECT_EQ(run_process(
                {"sh", "-c",
                 "printf 'hi\\n\\nbye' | " + std::string(LOCKSTEP_PROGRAM) + " chat --temperature 0 " + gguf.string()})
                .out,
            "yo\nagain\n");
  EXPECT_EQ(run_process({"sh", "-c",
                         "printf 'hi\\n\\nbye' | " + std::string(LOCKSTEP_PROGRAM) +
                             " chat --temperature 0 --template own " + gguf.string()})
                .out,
            "yo\nagain\n");
  const ProcessResult untold = lockstep("chat", {"--model", run()});
  EXPECT_EQ(untold.exit_code, 2);
  EXPECT_THAT(untold.err, EndsWith(" has no template of its own and does not say which it was trained with; expected "
                                   "--template alpaca, chatml, default, gemma, llama2, llama3, mistral, qwen\n"));
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
            "lockstep eval: --predictions: " + job_->folder().string() + " is a folder\n");
  EXPECT_EQ(refusal({"--samples", "3"}), "lockstep eval: --samples requires --generate\n");
  EXPECT_EQ(refusal({"--temperature", "1"}), "lockstep eval: --temperature requires --generate\n");
  EXPECT_EQ(refusal({"--generate", "--batches", "3"}), "lockstep eval: --batches excludes --generate\n");
}

// With the chat template that a model brings along: into the dataset, through training, and back.
TEST_F(ModelCommandsTest, TalkInTheModelsOwnTemplate) {
  const fs::path model = job_->folder() / "model";
  fs::create_directories(model);
  write_file_atomic(job_->folder() / "own.jsonl", R"({"instruction": "hi", "output": "yo"})");
  const auto pack = [&](const std::string& chat_template, const std::string& tokenizer, const std::string& out) {
    return lockstep("pack", {"--format", "chat", "--template", chat_template, "--tokenizer", tokenizer, "--split", "1",
                             "--out", job_->folder() / out, job_->folder() / "own.jsonl"});
  };
  ASSERT_EQ(pack("default", "bytes", "bytes").exit_code, 0);
  fs::copy_file(job_->folder() / "bytes" / "train" / "tokenizer.json", model / "tokenizer.json");
  const std::string source =
      "{% for m in messages %}{{ m.role[0] ~ ':' ~ m.content ~ eos_token }}{% endfor %}{{ 'a:' if "
      "add_generation_prompt }}";
  const std::string config = nlohmann::json{{"chat_template", source}, {"eos_token", "<|endoftext|>"}}.dump();
  write_file_atomic(model / "tokenizer_config.json", config);
  const ProcessResult packed = pack("own", model / "tokenizer.json", "own");
  ASSERT_EQ(packed.exit_code, 0) << packed.err;
  const ProcessResult trained = job_->train(
      {"own",
       1,
       {"data.train=" + (job_->folder() / "own" / "train").string(), "data.valid=", "evaluate.every_steps=0",
        "train.steps=80", "model.context=64", "model.dropout=0", "optimizer.lr=0.01"}});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const fs::path saved = job_->checkpoints("own") / "step-00000080";
  EXPECT_EQ(nlohmann::json::parse(read_file(saved / "tokenizer_config.json")).at("chat_template"), source);
  const auto ask = [&](const fs::path& of) {
    return run_process({"sh", "-c", "echo hi | " LOCKSTEP_PROGRAM " chat --temperature 0 --model " + of.string()});
  };
  EXPECT_EQ(ask(job_->folder() / "runs" / "own").out, "yo\n");
  const ProcessResult evaluated =
      eval({"--generate", "--data", job_->folder() / "own" / "train"}, job_->folder() / "runs" / "own");
  EXPECT_THAT(evaluated.out,
              AllOf(StartsWith("exact 100.00 %, BLEU 0.00, BLEU-4 "),
                    EndsWith(", ROUGE-1 100.00, ROUGE-2 0.00, ROUGE-L 100.00, over 1 answers, 0 unfinished\n")))
      << evaluated.err;

  // As another's model has it: the template alone, without a name of ours.
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    fs::copy_file(saved / name, model / name, fs::copy_options::overwrite_existing);
  }
  const ProcessResult others = ask(model);
  EXPECT_EQ(others.out, "yo\n") << others.err;
}

TEST_F(ModelCommandsTest, ExportWhatTheyLoad) {
  const fs::path out = job_->folder() / "exported";
  const ProcessResult exported =
      lockstep("export", {"--model", run(), "--to", "safetensors", "--type", "f32", "--out", out});
  ASSERT_EQ(exported.exit_code, 0) << exported.err;
  EXPECT_THAT(exported.out, AllOf(StartsWith(out.string() + ": "), HasSubstr(" of weights in f32, one file, of "),
                                  EndsWith(checkpoint().string() + "\n")));
  EXPECT_EQ(generate({"--temperature", "0"}, out).out, text({"--temperature", "0"}));

  const fs::path gguf = job_->folder() / "m.gguf";
  const ProcessResult made = lockstep("export", {"--model", run(), "--to", "gguf", "--type", "q6_k", "--out", gguf});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_THAT(made.err, HasSubstr("tensors have rows that q6_k cannot take, and are Q8_0"));
  EXPECT_EQ(read_file(gguf).substr(0, 4), "GGUF");

  EXPECT_EQ(lockstep("export", {"--model", run(), "--to", "gguf", "--out", gguf}).err,
            "lockstep export: --out " + gguf.string() + ": a file is there; --overwrite replaces it\n");
  EXPECT_EQ(lockstep("export", {"--model", run(), "--to", "gguf", "--out", gguf, "--overwrite"}).exit_code, 0);
  EXPECT_EQ(
      lockstep("export", {"--model", run(), "--to", "safetensors", "--out", out}).err,
      "lockstep export: --out " + out.string() + ": it is there already; expected a folder to make, or an empty one\n");
  EXPECT_EQ(
      lockstep("export", {"--model", run(), "--to", "safetensors", "--type", "q8_0", "--out", out.string() + "2"}).err,
      "lockstep export: --type is q8_0, expected f32, f16 or bf16 for safetensors\n");
  EXPECT_EQ(lockstep("export", {"--model", job_->folder() / "no", "--to", "gguf", "--out", "x.gguf"}).exit_code, 2);
  EXPECT_FALSE(fs::exists("x.gguf"));
}

TEST_F(ModelCommandsTest, TakeAGgufFileForTheModelThatItWasExportedFrom) {
  const fs::path gguf = job_->folder() / "whole.gguf";
  ASSERT_EQ(lockstep("export", {"--model", run(), "--to", "gguf", "--type", "f32", "--out", gguf}).exit_code, 0);
  EXPECT_EQ(generate({"--temperature", "5"}, gguf).out, text({"--temperature", "5"}));
  EXPECT_EQ(lockstep("generate", {gguf, "--max-tokens", "20", "--prompt", "w1 w7 ", "--temperature", "0"}).out,
            text({"--temperature", "0"}));
  const auto loss = [&](const fs::path& model) {
    return nlohmann::json::parse(eval({"--json"}, model).out).at("loss").get<double>();
  };
  EXPECT_EQ(loss(gguf), loss(run()));

  const ProcessResult described = lockstep("inspect", {gguf});
  EXPECT_EQ(described.exit_code, 0) << described.err;
  EXPECT_THAT(described.out, AllOf(HasSubstr("gguf         " + gguf.string() + "\narchitecture gpt2\n"),
                                   HasSubstr("             context 32\n"), HasSubstr("             epsilon 1e-05\n"),
                                   HasSubstr("tokenizer    gpt2 (gpt-2), "), HasSubstr("template     none\n"),
                                   HasSubstr("type         F32   "), HasSubstr(" token_embd.weight\n")));
  const auto json = nlohmann::json::parse(lockstep("inspect", {gguf, "--json"}).out);
  EXPECT_EQ(json.at("what"), "gguf");
  EXPECT_EQ(json.at("architecture"), "gpt2");
  EXPECT_EQ(json.at("sizes").at("context_length"), 32);
  EXPECT_EQ(json.at("tokenizer").at("model"), "gpt2");
  EXPECT_EQ(json.at("chat_template"), false);
  EXPECT_EQ(json.at("types").at("F32").at("values"), json.at("values"));
  EXPECT_EQ(json.at("types").at("F32").at("tensors"), json.at("tensors").size());

  const ProcessResult again = lockstep("export", {"--model", gguf, "--to", "gguf", "--out", "again.gguf"});
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_EQ(again.err, "lockstep export: " + gguf.string() +
                           " is an export already; expected a run, a checkpoint or a Hugging Face folder\n");
  const ProcessResult other = generate({}, checkpoint() / "config.json");
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(other.err, HasSubstr("config.json is no GGUF file; expected one, or a run, a checkpoint"));
  fs::resize_file(gguf, fs::file_size(gguf) / 2);
  const ProcessResult cut = generate({}, gguf);
  EXPECT_EQ(cut.exit_code, 2);
  EXPECT_THAT(cut.err, AllOf(HasSubstr(gguf.string() + ": tensor "), HasSubstr(", but the file has only ")));
}

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

// gpt2's head is its embedding: peft keeps the head as it was unless it is told otherwise, and wants it in the file.
TEST_F(ModelCommandsTest, ExportASharedEmbeddingAsPeftWantsIt) {
  const std::string from = "model.from=" + checkpoint().string();
  ASSERT_EQ(job_->train({"shared",
                         1,
                         {from, "tune.method=lora", "tune.rank=4", "tune.also_train=wte", "train.steps=4",
                          "optimizer.lr=1e-2"}})
                .exit_code,
            0);
  const fs::path shared = job_->folder() / "runs" / "shared";
  const fs::path adapters = job_->folder() / "shared-adapters";
  ASSERT_EQ(lockstep("export", {"--model", shared, "--to", "adapter", "--type", "f32", "--out", adapters}).exit_code,
            0);
  auto config = nlohmann::json::parse(read_file(adapters / "adapter_config.json"));
  EXPECT_EQ(config.at("ensure_weight_tying"), true);
  {
    const SafetensorsFile file(adapters / "adapter_model.safetensors");
    const auto values = [&](const std::string& name) {
      std::vector<float> read(file.get(name).count());
      file.read_f32(file.get(name), 0, read);
      return read;
    };
    EXPECT_EQ(values("base_model.model.lm_head.weight"), values("base_model.model.transformer.wte.weight"));
  }
  const fs::path apart = job_->folder() / "shared-1";
  const fs::path whole = job_->folder() / "shared-2";
  const auto merge = [&](const fs::path& model, const fs::path& out) {
    return lockstep("merge", {"--model", model, "--adapter", adapters, "--type", "f32", "--out", out});
  };
  EXPECT_EQ(merge(run(), apart).err.find("error"), std::string::npos);
  ASSERT_EQ(lockstep("merge", {"--model", shared, "--type", "f32", "--out", whole}).exit_code, 0);
  EXPECT_EQ(read_file(apart / "model.safetensors"), read_file(whole / "model.safetensors"));
  // The model beneath is known by its fingerprint.
  EXPECT_THAT(merge(whole, job_->folder() / "shared-3").err, HasSubstr("was trained on another model than"));
  config["ensure_weight_tying"] = false;
  write_file_atomic(adapters / "adapter_config.json", config.dump());
  EXPECT_THAT(merge(run(), job_->folder() / "shared-3").err,
              HasSubstr("trains the embedding apart from the head, which are one in its model"));
  EXPECT_FALSE(fs::exists(job_->folder() / "shared-3"));
}

// As on a full disk: files may have 4 KiB.
TEST_F(ModelCommandsTest, ExportNothingRatherThanAHalf) {
  const fs::path out = job_->folder() / "half";
  for (const std::string command : {"export --to safetensors", "export --to gguf"}) {
    const ProcessResult result = run_process({"sh", "-c",
                                              "trap '' XFSZ; ulimit -f 8; " + std::string(LOCKSTEP_PROGRAM) + " " +
                                                  command + " --model " + run().string() + " --out " + out.string()});
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_FALSE(fs::exists(out)) << command;
    EXPECT_FALSE(fs::exists(out.string() + ".partial")) << command;
  }
}

TEST_F(ModelCommandsTest, LayAdaptersOverTheirModelAndMergeThem) {
  const std::string from = "model.from=" + checkpoint().string();
  ASSERT_EQ(job_->train({"lora", 1, {from, "tune.method=lora", "tune.rank=4", "train.steps=20", "optimizer.lr=1e-2"}})
                .exit_code,
            0);
  const fs::path lora = job_->folder() / "runs" / "lora";
  const fs::path adapters = job_->checkpoints("lora") / "step-00000020";
  const Words likeliest = {"--temperature", "0"};
  const std::string tuned = generate(likeliest, lora).out;
  EXPECT_NE(tuned, text(likeliest));
  EXPECT_EQ(generate({"--temperature", "0", "--adapter", adapters}).out, tuned);
  EXPECT_EQ(generate({"--temperature", "0", "--adapter", lora}).out, tuned);

  const fs::path merged = job_->folder() / "merged";
  const ProcessResult merge =
      lockstep("merge", {"--model", run(), "--adapter", lora, "--type", "f32", "--out", merged});
  ASSERT_EQ(merge.exit_code, 0) << merge.err;
  EXPECT_THAT(merge.out, EndsWith(adapters.string() + " over " + checkpoint().string() + "\n"));
  EXPECT_EQ(generate(likeliest, merged).out, tuned);
  const fs::path merged_alone = job_->folder() / "merged-alone";
  EXPECT_EQ(lockstep("merge", {"--model", lora, "--type", "f32", "--out", merged_alone}).exit_code, 0);
  EXPECT_EQ(read_file(merged_alone / "model.safetensors"), read_file(merged / "model.safetensors"));
  EXPECT_THAT(lockstep("merge", {"--model", run(), "--out", job_->folder() / "none"}).err,
              HasSubstr("has nothing that stands beside a model; --adapter DIR names it"));
  const fs::path apart = job_->folder() / "apart";
  ASSERT_EQ(lockstep("export", {"--model", lora, "--to", "adapter", "--type", "f32", "--out", apart}).exit_code, 0);
  EXPECT_EQ(generate(likeliest, apart).out, tuned);
  EXPECT_THAT(lockstep("inspect", {apart}).out, AllOf(HasSubstr("rank 4, scale 2, of c_attn,c_proj,c_fc"),
                                                      HasSubstr("trained on   " + checkpoint().string())));
  EXPECT_THAT(lockstep("inspect", {adapters}).out, HasSubstr(", fingerprint "));

  const auto verified =
      nlohmann::json::parse(lockstep("verify", {"--model", run(), "--adapter", lora, merged, apart, "--json"}).out);
  const auto& rows = verified.at("compared");
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(verified.at("model").at("kind"), "adapter");
  EXPECT_EQ(rows[0].at("name"), "base without the adapter");
  EXPECT_GT(rows[0].at("mean_kl").get<double>(), 1e-3);
  EXPECT_EQ(rows[1].at("kind"), "safetensors");
  EXPECT_LT(rows[1].at("mean_kl").get<double>(), 1e-9);
  EXPECT_LT(rows[1].at("relative_difference").get<double>(), 1e-4);
  EXPECT_EQ(rows[2].at("kind"), "adapter");
  EXPECT_EQ(rows[2].at("max_difference"), 0);
  // Adapters over a file of the same weights.
  const fs::path base = job_->folder() / "base.gguf";
  ASSERT_EQ(lockstep("export", {"--model", run(), "--to", "gguf", "--type", "f32", "--out", base}).exit_code, 0);
  EXPECT_EQ(generate({"--temperature", "0", "--adapter", lora}, base).out, tuned);

  // Losses are the same to the rounding of sums in another order.
  const auto loss = [&](const fs::path& model) {
    return nlohmann::json::parse(eval({"--json"}, model).out).at("loss").get<double>();
  };
  EXPECT_NEAR(loss(merged), loss(lora), 1e-5);
  EXPECT_LT(loss(lora), loss(run()) - 0.01);
}

TEST_F(ModelCommandsTest, RefuseAdaptersThatDoNotFit) {
  const std::string from = "model.from=" + checkpoint().string();
  ASSERT_EQ(job_->train({"fits", 1, {from, "tune.method=lora", "train.steps=2"}}).exit_code, 0);
  ASSERT_EQ(job_->train({"another", 1, {"run.seed=9", "train.steps=2"}}).exit_code, 0);
  const fs::path fits = job_->folder() / "runs" / "fits";
  const fs::path another = job_->folder() / "runs" / "another";
  const fs::path out = job_->folder() / "nothing";
  const auto refusal = [&](const fs::path& model, const fs::path& adapter) {
    const ProcessResult result = lockstep("merge", {"--model", model, "--adapter", adapter, "--out", out});
    EXPECT_EQ(result.exit_code, 2);
    EXPECT_FALSE(fs::exists(out));
    return result.err;
  };
  EXPECT_THAT(refusal(another, fits), HasSubstr("was trained on another model than " + another.string()));
  EXPECT_THAT(refusal(run(), another), HasSubstr("holds a whole model; expected adapters (adapter_config.json)"));
  EXPECT_THAT(refusal(fits, fits), HasSubstr("adapters stand beside a whole model"));

  const fs::path copy = job_->folder() / "peft";
  ASSERT_EQ(lockstep("export", {"--model", fits, "--to", "adapter", "--out", copy}).exit_code, 0);
  const std::string config = read_file(copy / "adapter_config.json");
  const auto with = [&](const std::string& key, const nlohmann::json& value) {
    nlohmann::json changed = nlohmann::json::parse(config);
    changed[key] = value;
    write_file_atomic(copy / "adapter_config.json", changed.dump());
    return refusal(run(), copy);
  };
  EXPECT_THAT(with("peft_type", "LOHA"), HasSubstr("peft_type is LOHA, expected LORA"));
  EXPECT_THAT(with("use_qalora", true), HasSubstr("use_qalora is true, which is not supported"));
  EXPECT_THAT(with("init_lora_weights", "pissa"), HasSubstr("which changes the base model"));
  EXPECT_THAT(with("target_modules", ".*proj"), HasSubstr("target_modules is the pattern .*proj"));
  EXPECT_THAT(with("target_modules", {"c_attn"}), HasSubstr("nothing is known to do with tensor"));
  EXPECT_THAT(with("r", 16), HasSubstr("has shape [32, 8], expected [32, 16]"));
  EXPECT_THAT(with("r", 0), HasSubstr("r is 0, expected at least 1"));
  EXPECT_THAT(with("r", "many"), HasSubstr("r is \"many\""));
  write_file_atomic(copy / "adapter_config.json", config.substr(0, config.size() / 2));
  EXPECT_THAT(refusal(run(), copy), HasSubstr("expected a JSON object"));
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
