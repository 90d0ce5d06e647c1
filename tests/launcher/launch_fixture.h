// What tests of lockstep launch share: a job, the command that launches it, and what is seen of it from outside.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "tests/support/training_job.h"

namespace lockstep {

inline constexpr int kSteps = 1'000;  // some two seconds on two ranks: time to notice a step and to kill

class LaunchFixture : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN});
    const ProcessResult result = job_->train({"undisturbed", 1, settings()});
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  static std::vector<std::string> settings() {
    return {"train.steps=" + std::to_string(kSteps), "checkpoint.every_steps=10", "comm.silence_s=2"};
  }
  static std::vector<std::string> command(const std::string& run, const std::vector<std::string>& options,
                                          const std::vector<std::string>& more_settings = {}) {
    std::vector<std::string> all = settings();
    all.insert(all.end(), more_settings.begin(), more_settings.end());
    std::vector<std::string> words = job_->command({run, 1, all, options});
    words.erase(words.begin(), words.begin() + 2);  // mpirun.sh 1
    words[1] = "launch";
    return words;
  }
  static const std::vector<std::string>& environment() {
    // For builds with sanitizers: Open MPI leaks, takes its own locks in two orders, and hooks the end of threads.
    static const std::vector<std::string> variables = {"OMPI_MCA_mpi_yield_when_idle=1", "ASAN_OPTIONS=detect_leaks=0",
                                                       "TSAN_OPTIONS=detect_deadlocks=0", "OMPI_MCA_memory=^patcher"};
    return variables;
  }
  static ProcessResult launch(const std::string& run, const std::vector<std::string>& options,
                              const std::vector<std::string>& more_settings = {}) {
    Process process(command(run, options, more_settings), environment());
    return process.wait(100);
  }
  // The job's configuration in a file of its own, with which a command is to be launched.
  static std::filesystem::path own_config(std::vector<std::string>& words, const std::string& name) {
    words[2] = (job_->folder() / name).string();
    std::filesystem::copy_file(job_->folder() / "job.yaml", words[2]);
    return words[2];
  }
  // What would become another run, elsewhere and with other weights.
  static void edit(const std::filesystem::path& config) {
    std::string text = read_file(config);
    for (const auto& [from, to] : {std::pair("/runs}", "/elsewhere}"), std::pair("lr: 1.0e-3", "lr: 5.0e-2")}) {
      text.replace(text.find(from), std::string(from).size(), to);
    }
    write_file_atomic(config, text);
  }
  // An environment in which `script` is what a program of that name does.
  static std::vector<std::string> with_program(const std::string& name, const std::string& script) {
    const std::filesystem::path folder = job_->folder() / "programs" / std::to_string(programs_++);
    std::filesystem::create_directories(folder);
    std::ofstream(folder / name) << "#!/bin/sh\n" << script;
    std::filesystem::permissions(folder / name, std::filesystem::perms::owner_all);
    return {"PATH=" + folder.string() + ":" + std::getenv("PATH")};
  }
  static void expect_the_first_configuration(const std::string& run) {
    expect_the_undisturbed_result(run);
    EXPECT_FALSE(std::filesystem::exists(job_->folder() / "elsewhere"));
    EXPECT_EQ(read_file(folder_of(run) / "launch.yaml"), read_file(job_->folder() / "job.yaml"));
  }
  static std::filesystem::path folder_of(const std::string& run) { return job_->folder() / "runs" / run; }

  static nlohmann::json status(const std::string& run) {
    const ProcessResult result = run_process({LOCKSTEP_PROGRAM, "status", folder_of(run), "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  }
  // Waits until `holds` of the job's status does.
  static void wait_for(Process& process, const std::string& run,
                       const std::function<bool(const nlohmann::json&)>& holds) {
    for (int i = 0; i < 600 && process.is_running(); ++i) {
      if (std::filesystem::exists(folder_of(run) / "coordinator.json") && holds(status(run))) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    ADD_FAILURE() << "did not come: " << process.err();
  }
  // Waits until both ranks train in that attempt and have done that many steps, the last of them in it; returns the
  // process of rank `rank`.
  static pid_t wait_for_step(Process& process, const std::string& run, int attempt, int step, std::size_t rank = 1) {
    pid_t found = 0;
    wait_for(process, run, [&](const nlohmann::json& now) {
      const nlohmann::json& ranks = now["ranks"];
      if (now.value("attempt", 0) != attempt || ranks.size() != 2 || ranks[0]["completed_step"] < step ||
          ranks[0]["completed_step"] <= ranks[0]["first_step"]) {
        return false;
      }
      found = ranks[rank]["process"];
      return true;
    });
    return found;
  }
  static void expect_end(pid_t process) {
    for (int i = 0; i < 1000 && kill(process, 0) == 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_NE(kill(process, 0), 0);
  }
  static void expect_the_undisturbed_result(const std::string& run) {
    EXPECT_EQ(job_->result(run), job_->result("undisturbed"));
    EXPECT_EQ(job_->curve(run), job_->curve("undisturbed"));
  }
  static std::vector<nlohmann::json> attempts(const std::string& run) {
    std::vector<nlohmann::json> all;
    std::ifstream file(folder_of(run) / "attempts.jsonl");
    for (std::string line; std::getline(file, line);) {
      all.push_back(nlohmann::json::parse(line));
    }
    return all;
  }

  inline static int programs_ = 0;
  inline static TrainingJob* job_ = nullptr;  // of the suite that runs
};

}  // namespace lockstep
