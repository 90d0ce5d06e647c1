// A job on four hosts inside this machine, as the tests of cluster_test share it: the cluster, a disk that all hosts
// share, the commands that start jobs, and what became of them.
//
// One program run holds one cluster, so the cases run in one process: cluster_test [--gtest_filter=...].
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "tests/support/cluster.h"
#include "tests/support/training_job.h"

namespace lockstep {

inline constexpr int kSteps = 900;
inline constexpr int kManySteps = 3000;  // some 15 seconds on four hosts

// A small file system of its own, which all hosts share.
class SharedDisk {
 public:
  SharedDisk(std::filesystem::path folder, const std::string& options) : folder_(std::move(folder)) {
    std::filesystem::create_directories(folder_);
    mounted_ = ::mount("tmpfs", folder_.c_str(), "tmpfs", 0, options.c_str()) == 0;
  }
  ~SharedDisk() {
    if (mounted_) {
      ::umount2(folder_.c_str(), MNT_DETACH);
    }
  }
  SharedDisk(const SharedDisk&) = delete;
  SharedDisk& operator=(const SharedDisk&) = delete;

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  // Waits for a moment in which no file is being written.
  void set_read_only(bool read_only) const {
    int result = -1;
    for (int i = 0; i < 2000 && result != 0; ++i) {
      result = ::mount("tmpfs", folder_.c_str(), "tmpfs", MS_REMOUNT | (read_only ? MS_RDONLY : 0), nullptr);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(result, 0);
  }

 private:
  std::filesystem::path folder_;
  bool mounted_ = false;
};

class ClusterTest : public testing::Test {
 protected:
  using Words = std::vector<std::string>;

  static void SetUpTestSuite() {
    job_ = std::make_unique<TrainingJob>(Programs{LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN});
    for (const auto& [name, steps] : {std::pair("undisturbed", kSteps), std::pair("undisturbed_long", kManySteps)}) {
      if (const ProcessResult result = job_->train({name, 1, settings(steps)}); result.exit_code != 0) {
        throw std::runtime_error(result.err);
      }
    }
    disk_ = std::make_unique<SharedDisk>(job_->checkpoints("disk"), "size=24m");
    cluster_ = std::make_unique<Cluster>(
        LOCKSTEP_TESTBED,
        std::vector<std::filesystem::path>{job_->folder(), disk_->folder(),
                                           std::filesystem::path(LOCKSTEP_PROGRAM).parent_path()},
        Words{"--grace", "20", "--requeue-delay", "5"});
  }
  static void TearDownTestSuite() {
    cluster_.reset();
    disk_.reset();
    job_.reset();
  }
  void SetUp() override {
    if (!cluster_->problem().empty()) {
      GTEST_SKIP() << cluster_->problem();
    }
  }
  // What a case leaves behind must not meet the next one.
  void TearDown() override {
    if (!cluster_->problem().empty()) {
      return;
    }
    if (HasFailure()) {
      // How its attempts went, and what its job said: of the run that was written to last.
      std::cerr << run_process(cluster_->on("n1", {"sh", "-c",
                                                   "squeue; sinfo -N; cd " + job_->folder().string() +
                                                       "/runs; cd \"$(ls -t | head -n 1)\"; pwd; "
                                                       "cat attempts.jsonl; tail -n 60 slurm-*.log"}))
                       .out;
    }
    static_cast<void>(on_n1({"scancel", "--user=root"}));
    for (const char* host : {"n1", "n2", "n3", "n4"}) {
      cluster_->call("node", {host, "up"});
      cluster_->call("link", {host, "up"});
      for (const pid_t process : cluster_->processes(host, "lockstep (train|launch|serve)")) {
        kill(process, SIGKILL);
      }
    }
    static_cast<void>(on_n1({"scontrol", "update", "nodename=n[1-4]", "state=resume"}));
  }

  static ProcessResult on_n1(const Words& command) { return run_process(cluster_->on("n1", command)); }
  static Words settings(int steps = kSteps) {
    return {"train.steps=" + std::to_string(steps), "checkpoint.every_steps=20", "train.threads=1", "comm.silence_s=2",
            "evaluate.every_steps=300"};
  }
  static Words environment() {
    return {"OMPI_ALLOW_RUN_AS_ROOT=1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
            "PRTE_ALLOW_RUN_AS_ROOT=1",
            "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1",
            "OMPI_MCA_mpi_yield_when_idle=1",
            "OMPI_MCA_btl_tcp_if_include=eth0",
            "OMPI_MCA_oob_tcp_if_include=eth0",
            "PRTE_MCA_prte_if_include=eth0",
            "OMPI_MCA_hwloc_base_binding_policy=none"};
  }
  // env VARIABLES lockstep launch CONFIG --set ... OPTIONS
  static Words launch_words(const std::string& run, const Words& options, const Words& more_settings = {}) {
    Words all = settings();
    all.insert(all.end(), more_settings.begin(), more_settings.end());
    Words words = job_->command({run, 1, all, options});
    words.erase(words.begin(), words.begin() + 2);  // mpirun.sh 1
    words[1] = "launch";
    const Words variables = environment();
    words.insert(words.begin(), variables.begin(), variables.end());
    words.insert(words.begin(), "env");
    return words;
  }
  // On n1, over all hosts by ssh and mpirun.
  static Words by_ssh(const std::string& run, const Words& more_settings = {}) {
    return cluster_->on("n1", launch_words(run, {"--hosts", "n1,n2,n3,n4", "--ssh", cluster_->ssh()}, more_settings));
  }
  static std::filesystem::path folder_of(const std::string& run) { return job_->folder() / "runs" / run; }

  static nlohmann::json status(const std::filesystem::path& run) {
    const ProcessResult result = run_process(cluster_->on("n1", {LOCKSTEP_PROGRAM, "status", run.string(), "--json"}));
    return nlohmann::json::parse(result.out, nullptr, false);
  }
  // Waits until that attempt has so many ranks and has done `step` steps; returns its last status.
  static nlohmann::json wait_for_step(Process* process, const std::filesystem::path& run, int attempt, int ranks,
                                      int step) {
    for (int i = 0; i < 900 && (process == nullptr || process->is_running()); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      if (!std::filesystem::exists(run / "coordinator.json")) {
        continue;
      }
      const nlohmann::json now = status(run);
      if (now.is_object() && now.value("attempt", 0) >= attempt &&
          now["ranks"].size() == static_cast<std::size_t>(ranks) && now["ranks"][0]["completed_step"] >= step) {
        return now;
      }
    }
    ADD_FAILURE() << "step " << step << " of attempt " << attempt << " on " << ranks
                  << " ranks did not come: " << (process == nullptr ? "" : process->err());
    return {};
  }
  static std::set<std::string> finished_saves(const std::string& run) {
    std::set<std::string> names;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(job_->checkpoints(run), error)) {
      if (entry.path().extension().empty()) {
        names.insert(entry.path().filename());
      }
    }
    return names;
  }
  static void expect_the_undisturbed_result(const std::string& run, const std::string& undisturbed = "undisturbed") {
    EXPECT_EQ(job_->result(run), job_->result(undisturbed));
    EXPECT_EQ(job_->curve(run), job_->curve(undisturbed));
  }
  static std::vector<nlohmann::json> attempts(const std::filesystem::path& run) {
    std::vector<nlohmann::json> all;
    std::ifstream file(run / "attempts.jsonl");
    for (std::string line; std::getline(file, line);) {
      all.push_back(nlohmann::json::parse(line));
    }
    return all;
  }
  // One line for the table of docs/reliability.md.
  static void tell(const std::string& fault, const std::filesystem::path& run) {
    for (const nlohmann::json& attempt : attempts(run)) {
      std::cout << "fault: " << fault << ", attempt " << attempt["attempt"] << " on " << attempt["ranks"]
                << " ranks: detected after " << attempt["detected_s"] << " s, training again after "
                << attempt["recovered_s"] << " s; " << attempt["cause"] << std::endl;
    }
  }

  // Submits on n1 and returns the job's number.
  static std::string submit(const Words& words) {
    const ProcessResult result = run_process(cluster_->on("n1", words));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const std::size_t number = result.out.find_last_of(' ');
    return result.out.substr(number + 1, result.out.find('\n') - number - 1);
  }
  static std::string state_of(const std::string& id) {
    const std::string text = run_process(cluster_->on("n1", {"scontrol", "show", "job", "-o", id})).out;
    const std::size_t at = text.find("JobState=");
    return at == std::string::npos ? "" : text.substr(at + 9, text.find(' ', at) - at - 9);
  }
  static std::string wait_for_end(const std::string& id, int seconds) {
    std::string state;
    for (int i = 0; i < seconds * 5; ++i) {
      state = state_of(id);
      if (state == "COMPLETED" || state == "FAILED" || state == "CANCELLED" || state == "TIMEOUT" ||
          state == "PREEMPTED" || state == "NODE_FAIL") {
        return state;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    return "still " + state;
  }
  static std::string log_of(const std::string& run, const std::string& id) {
    const std::filesystem::path path = folder_of(run) / ("slurm-" + id + ".log");
    return std::filesystem::exists(path) ? read_file(path) : "";
  }

  static ProcessResult by_plain_srun(const std::string& run, const Words& before_the_program) {
    Words train = job_->command({run, 1, settings()});
    train.erase(train.begin(), train.begin() + 2);
    Words words = {"env"};
    for (const std::string& variable : environment()) {
      words.push_back(variable);
    }
    words.insert(words.end(), {"srun", "--nodes=4", "--ntasks=4", "--mpi=pmix", "--kill-on-bad-exit=1"});
    words.insert(words.end(), before_the_program.begin(), before_the_program.end());
    words.insert(words.end(), train.begin(), train.end());
    return run_process(cluster_->on("n1", words));
  }

  inline static std::unique_ptr<TrainingJob> job_;
  inline static std::unique_ptr<SharedDisk> disk_;
  inline static std::unique_ptr<Cluster> cluster_;
};

}  // namespace lockstep
