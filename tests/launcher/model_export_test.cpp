// lockstep export, and what can be done with a GGUF file.
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
using testing::HasSubstr;
using testing::StartsWith;

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

}  // namespace
}  // namespace lockstep
