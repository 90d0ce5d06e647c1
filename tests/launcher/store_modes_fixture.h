// Training through parameter servers that hold the weights (comm.mode bounded and async), as people run it: servers and
// workers by hand, ended, killed and started again.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/training_job.h"

namespace lockstep {

inline std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline int times(const std::string& text, const std::string& what) {
  int count = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) {
    ++count;
  }
  return count;
}

class StoreModesTest : public testing::Test {
 protected:
  using Words = std::vector<std::string>;
  using Ranks = TrainingJob::Ranks;

  static void SetUpTestSuite() { job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN}); }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  static TrainingJob::ServedRun start(const std::string& name, int ranks, const std::string& mode, int servers = 1,
                                      Words settings = {}, Words serve_options = {}) {
    settings.push_back("comm.mode=" + mode);
    serve_options.insert(serve_options.end(), {"--mode", mode});
    return job_->start_with_servers({name, ranks, settings, {}, serve_options}, servers, Ranks::kByHand);
  }
  // All processes end in order. Returns what the first server said.
  static std::string end(TrainingJob::ServedRun& run, int exit_code = 0) {
    for (const std::unique_ptr<Process>& worker : run.workers) {
      const ProcessResult result = worker->wait(120);
      EXPECT_EQ(result.exit_code, exit_code) << result.err;
    }
    std::string said;
    for (const std::unique_ptr<Process>& server : run.servers) {
      const ProcessResult result = server->wait();
      EXPECT_EQ(result.exit_code, 0) << result.err;
      said = said.empty() ? result.err : said;
    }
    return said;
  }
  static TrainingJob::Result alone(const std::string& name, const Words& settings = {}) {
    const ProcessResult result = job_->train({name, 1, settings});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return job_->result(name);
  }
  static std::vector<nlohmann::json> metrics(const std::string& name) {
    std::vector<nlohmann::json> lines;
    std::ifstream file(job_->folder() / "runs" / name / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      lines.push_back(nlohmann::json::parse(line, nullptr, false));
    }
    return lines;
  }
  static bool wait_until(const std::function<bool()>& condition) {
    for (int tries = 0; tries < 6000 && !condition(); ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return condition();
  }
  // Steps that a rank with data.trace has begun.
  static int begun(const std::string& trace, int rank) {
    std::set<std::string> steps;
    std::ifstream file(trace + ".rank" + std::to_string(rank));
    for (std::string line; std::getline(file, line);) {
      steps.insert(line.substr(0, line.find(' ')));
    }
    return static_cast<int>(steps.size());
  }
  // Worker `rank` of a run once more, or `lockstep serve` of its part.
  static std::unique_ptr<Process> again(const Words& words, const Words& environment = {}) {
    Words all = {"LOCKSTEP_TOKEN_FILE=" + (job_->folder() / "token").string()};
    all.insert(all.end(), environment.begin(), environment.end());
    return std::make_unique<Process>(words, all);
  }
  static void kill_all(TrainingJob::ServedRun& run) {
    for (const auto* const processes : {&run.servers, &run.workers}) {
      for (const std::unique_ptr<Process>& process : *processes) {
        process->send(SIGKILL);
        (void)process->wait();
      }
    }
  }
  static std::string address_of(const TrainingJob::ServedRun& run) {
    const std::string out = run.servers[0]->out();
    return out.substr(0, out.find('\n'));
  }

  inline static TrainingJob* job_ = nullptr;
};

}  // namespace lockstep
