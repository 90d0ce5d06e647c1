// lockstep chat, with models that were trained to say one thing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "base/file.h"
#include "tests/launcher/model_commands_fixture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::EndsWith;
using testing::StartsWith;

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

}  // namespace
}  // namespace lockstep
