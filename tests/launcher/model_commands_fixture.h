// What tests of commands on a model share (generate, chat, eval, export, merge, verify): a small run that lockstep
// train made, and the commands as people run them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/file.h"
#include "tests/support/training_job.h"

namespace lockstep {

class ModelCommandsTest : public testing::Test {
 protected:
  using Words = std::vector<std::string>;

  static void SetUpTestSuite() {
    job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN});
    const ProcessResult trained = job_->train({"r", 1, {"train.steps=12", "checkpoint.every_steps=6"}});
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
  }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  static std::filesystem::path run() { return job_->folder() / "runs" / "r"; }
  static std::filesystem::path checkpoint() { return job_->checkpoints("r") / "step-00000012"; }

  static ProcessResult lockstep(const std::string& command, const Words& arguments) {
    Words words = {LOCKSTEP_PROGRAM, command};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return run_process(words);
  }
  // 20 tokens, after "w1 w7 " unless `options` has a prompt.
  static ProcessResult generate(const Words& options, const std::filesystem::path& model = run()) {
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
  static ProcessResult eval(const Words& options, const std::filesystem::path& model = run()) {
    Words words = {"--model", model};
    words.insert(words.end(), options.begin(), options.end());
    if (std::ranges::find(options, "--data") == options.end()) {
      words.insert(words.end(), {"--data", job_->folder() / "data" / "valid"});
    }
    return lockstep("eval", words);
  }

  // A copy of the run whose files may be changed.
  static std::filesystem::path copy_of_run(const std::string& name) {
    const std::filesystem::path copy = job_->folder() / "runs" / name;
    std::filesystem::copy(run(), copy, std::filesystem::copy_options::recursive);
    return copy;
  }
  // The checkpoint without its manifest: a model from elsewhere, whose files may be changed.
  static std::filesystem::path hugging_face_folder(const std::string& name) {
    const std::filesystem::path folder = job_->folder() / name;
    std::filesystem::create_directory(folder);
    for (const char* file : {"config.json", "tokenizer.json", "model.safetensors"}) {
      std::filesystem::copy_file(checkpoint() / file, folder / file);
    }
    return folder;
  }
  static void change_json(const std::filesystem::path& file, const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = nlohmann::json::parse(read_file(file));
    change(json);
    write_file_atomic(file, json.dump());
  }
  static void damage(const std::filesystem::path& file) {
    std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  }

  static inline TrainingJob* job_ = nullptr;
};

}  // namespace lockstep
