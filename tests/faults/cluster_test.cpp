// A job on four hosts, with the faults that only several hosts have: links that go down, hosts that lose their power,
// Slurm's time limits, preemptions and cancellations. Every case ends with the weights and the loss curve of a run that
// nobody disturbed.
//
// One program run holds one cluster, so the cases run in one process: cluster_test [--gtest_filter=...].
#include "tests/support/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "base/file.h"
#include "tests/support/training_job.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;
using Words = std::vector<std::string>;

constexpr int kSteps = 900;
constexpr int kManySteps = 3000;  // some 15 seconds on four hosts
constexpr int kKills = 4;         // LOCKSTEP_KILLS says another number, for campaigns by hand

// The folders of saves that have begun and not ended, by inode: one of a killed job stays until the next job tidies up.
std::set<ino_t> saves_in(const fs::path& checkpoints) {
  std::set<ino_t> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(checkpoints, error)) {
    struct stat info = {};
    if (entry.path().extension() == ".partial" && ::stat(entry.path().c_str(), &info) == 0) {
      found.insert(info.st_ino);
    }
  }
  return found;
}

// A small file system of its own, which all hosts share.
class SharedDisk {
 public:
  SharedDisk(fs::path folder, const std::string& options) : folder_(std::move(folder)) {
    fs::create_directories(folder_);
    mounted_ = ::mount("tmpfs", folder_.c_str(), "tmpfs", 0, options.c_str()) == 0;
  }
  ~SharedDisk() {
    if (mounted_) {
      ::umount2(folder_.c_str(), MNT_DETACH);
    }
  }
  SharedDisk(const SharedDisk&) = delete;
  SharedDisk& operator=(const SharedDisk&) = delete;

  [[nodiscard]] const fs::path& folder() const { return folder_; }
  // Waits for a moment in which no file is being written.
  void set_read_only(bool read_only) const {
    int result = -1;
    for (int i = 0; i < 2000 && result != 0; ++i) {
      result = ::mount("tmpfs", folder_.c_str(), "tmpfs", MS_REMOUNT | (read_only ? MS_RDONLY : 0), nullptr);
      std::this_thread::sleep_for(milliseconds(1));
    }
    EXPECT_EQ(result, 0);
  }

 private:
  fs::path folder_;
  bool mounted_ = false;
};

class ClusterTest : public testing::Test {
 protected:
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
        std::vector<fs::path>{job_->folder(), disk_->folder(), fs::path(LOCKSTEP_PROGRAM).parent_path()},
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
  static fs::path folder_of(const std::string& run) { return job_->folder() / "runs" / run; }

  static json status(const fs::path& run) {
    const ProcessResult result = run_process(cluster_->on("n1", {LOCKSTEP_PROGRAM, "status", run.string(), "--json"}));
    return json::parse(result.out, nullptr, false);
  }
  // Waits until that attempt has so many ranks and has done `step` steps; returns its last status.
  static json wait_for_step(Process* process, const fs::path& run, int attempt, int ranks, int step) {
    for (int i = 0; i < 900 && (process == nullptr || process->is_running()); ++i) {
      std::this_thread::sleep_for(milliseconds(30));
      if (!fs::exists(run / "coordinator.json")) {
        continue;
      }
      const json now = status(run);
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
    for (const auto& entry : fs::directory_iterator(job_->checkpoints(run), error)) {
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
  static std::vector<json> attempts(const fs::path& run) {
    std::vector<json> all;
    std::ifstream file(run / "attempts.jsonl");
    for (std::string line; std::getline(file, line);) {
      all.push_back(json::parse(line));
    }
    return all;
  }
  // One line for the table of docs/reliability.md.
  static void tell(const std::string& fault, const fs::path& run) {
    for (const json& attempt : attempts(run)) {
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
      std::this_thread::sleep_for(milliseconds(200));
    }
    return "still " + state;
  }
  static std::string log_of(const std::string& run, const std::string& id) {
    const fs::path path = folder_of(run) / ("slurm-" + id + ".log");
    return fs::exists(path) ? read_file(path) : "";
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

  static std::unique_ptr<TrainingJob> job_;
  static std::unique_ptr<SharedDisk> disk_;
  static std::unique_ptr<Cluster> cluster_;
};
std::unique_ptr<TrainingJob> ClusterTest::job_;
std::unique_ptr<SharedDisk> ClusterTest::disk_;
std::unique_ptr<Cluster> ClusterTest::cluster_;

// Four hosts, then two, then four again.
TEST_F(ClusterTest, LeavesOutAHostThatWasCutOffAndTakesItBack) {
  Process process(by_ssh("cut"));
  wait_for_step(&process, folder_of("cut"), 1, 4, 25);
  cluster_->call("link", {"n4", "down"});
  const json two = wait_for_step(&process, folder_of("cut"), 2, 2, 100);
  EXPECT_EQ(two["world"], 2);
  cluster_->call("link", {"n4", "up"});
  for (const pid_t rank : cluster_->processes("n2", "lockstep train")) {
    kill(rank, SIGKILL);
  }
  wait_for_step(&process, folder_of("cut"), 3, 4, 105);
  EXPECT_EQ(process.wait(100).exit_code, 0) << process.err();
  expect_the_undisturbed_result("cut");
  tell("link down in a step, up again; a rank killed", folder_of("cut"));
  const std::vector<json> all = attempts(folder_of("cut"));
  ASSERT_EQ(all.size(), 3U);
  EXPECT_THAT(all[0]["cause"], AllOf(StartsWith("rank 3 (host n4, process "), HasSubstr(") has not answered for ")));
  EXPECT_LE(all[0]["detected_s"], 2.05);
  EXPECT_EQ(all[1]["ranks"], 2);
  EXPECT_THAT(all[1]["cause"], HasSubstr("(host n2, process "));
  EXPECT_EQ(all[2]["ranks"], 4);
}

TEST_F(ClusterTest, SurvivesALinkThatGoesDownInASave) {
  Process process(by_ssh("cut_in_save", {"checkpoint.every_steps=2"}));
  wait_for_step(&process, folder_of("cut_in_save"), 1, 4, 20);
  for (int i = 0; i < 2000 && saves_in(folder_of("cut_in_save") / "checkpoints").empty(); ++i) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  cluster_->call("link", {"n3", "down"});
  wait_for_step(&process, folder_of("cut_in_save"), 2, 2, 60);
  EXPECT_EQ(process.wait(100).exit_code, 0) << process.err();
  EXPECT_EQ(job_->result("cut_in_save"), job_->result("undisturbed"));
  tell("link down in a save", folder_of("cut_in_save"));
}

TEST_F(ClusterTest, SurvivesAHostWithoutPower) {
  Process process(by_ssh("power"));
  wait_for_step(&process, folder_of("power"), 1, 4, 25);
  cluster_->call("node", {"n3", "down"});
  wait_for_step(&process, folder_of("power"), 2, 2, 50);
  EXPECT_EQ(process.wait(100).exit_code, 0) << process.err();
  expect_the_undisturbed_result("power");
  tell("a host's power cut", folder_of("power"));
}

// Workers of a parameter server, without MPI: a link goes down and up again, a host goes for good and another takes
// over.
TEST_F(ClusterTest, ServesWorkersWhoseHostsComeAndGo) {
  const std::string run = "served-by-hand";
  const auto start = [](const char* host, Words words, const std::string& rank = "") {
    words.insert(words.begin(), {"env", "LOCKSTEP_TOKEN_FILE=" + (job_->folder() / "token").string()});
    if (!rank.empty()) {
      words.insert(words.begin() + 1, {"LOCKSTEP_RANK=" + rank, "LOCKSTEP_WORLD_SIZE=2"});
    }
    return std::make_unique<Process>(cluster_->on(host, words));
  };
  const auto said = [](const std::unique_ptr<Process>& process, const std::string& text) {
    for (int i = 0; i < 3'000 && process->err().find(text) == std::string::npos; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
    }
    EXPECT_THAT(process->err(), HasSubstr(text));
  };
  const auto wait_for_metrics = [&](int step) {
    const std::string text = "{\"step\": " + std::to_string(step) + ",";
    for (int i = 0; i < 6'000; ++i) {
      std::error_code none;
      const fs::path file = folder_of(run) / "metrics.jsonl";
      if (fs::exists(file, none) && read_file(file).find(text) != std::string::npos) {
        return;
      }
      std::this_thread::sleep_for(milliseconds(10));
    }
    ADD_FAILURE() << "step " << step << " did not come";
  };
  const auto server = start("n1", {LOCKSTEP_PROGRAM, "serve", "--workers", "2", "--listen", "0.0.0.0"});
  said(server, "part 1/1 for 2 workers");
  Words train = job_->command({run, 1, settings()});
  train.erase(train.begin(), train.begin() + 2);
  train.insert(train.end(), {"--set", "comm.backend=server", "--set", "comm.servers=n1:7070"});
  const auto first = start("n2", train, "0");
  auto second = start("n3", train, "1");
  wait_for_metrics(50);
  cluster_->call("link", {"n3", "down"});
  said(server, "has not answered for 2.");
  cluster_->call("link", {"n3", "up"});
  wait_for_metrics(300);
  cluster_->call("node", {"n3", "down"});
  second = start("n4", train, "1");
  for (Process* const process : {first.get(), second.get(), server.get()}) {
    EXPECT_EQ(process->wait(100).exit_code, 0) << process->err();
  }
  expect_the_undisturbed_result(run);
}

TEST_F(ClusterTest, NamesAStoppedRankOnAnotherHost) {
  Process process(by_ssh("stopped"));
  wait_for_step(&process, folder_of("stopped"), 1, 4, 25);
  const std::vector<pid_t> ranks = cluster_->processes("n3", "lockstep train");
  ASSERT_FALSE(ranks.empty());
  for (const pid_t rank : ranks) {
    kill(rank, SIGSTOP);
  }
  EXPECT_EQ(process.wait(100).exit_code, 0) << process.err();
  expect_the_undisturbed_result("stopped");
  tell("SIGSTOP of a rank", folder_of("stopped"));
  EXPECT_THAT(attempts(folder_of("stopped")).at(0)["cause"], StartsWith("rank 2 (host n3, process "));
}

// Parameter servers on n1 and n2, and workers, each reached by ssh alone: a worker dies, then a host is cut off.
TEST_F(ClusterTest, ServedRanksSurviveAKillAndALostHost) {
  const fs::path run = folder_of("served");
  Process process(cluster_->on("n1", launch_words("served", {"--backend", "server", "--servers", "2", "--hosts",
                                                             "n1,n2,n3,n4", "--ssh", cluster_->ssh()})));
  const json first = wait_for_step(&process, run, 1, 4, 25);
  for (const pid_t rank : cluster_->processes("n3", "lockstep train")) {
    kill(rank, SIGKILL);
  }
  json again = first;
  for (int i = 0; i < 900 && process.is_running() &&
                  (again["ranks"].size() != 4 || again["ranks"][2]["process"] == first["ranks"][2]["process"] ||
                   again["ranks"][2]["completed_step"] < 60);
       ++i) {
    std::this_thread::sleep_for(milliseconds(30));
    again = fs::exists(run / "coordinator.json") ? status(run) : first;
  }
  cluster_->call("link", {"n4", "down"});
  EXPECT_EQ(process.wait(100).exit_code, 0) << process.err();
  cluster_->call("link", {"n4", "up"});
  expect_the_undisturbed_result("served");
  std::string causes;
  for (const json& line : attempts(run)) {
    causes += line["cause"].get<std::string>() + "\n";
  }
  EXPECT_THAT(causes, AllOf(HasSubstr("rank 2 (host n3, process "), HasSubstr(") is gone; last seen in ")));
  EXPECT_THAT(causes, AllOf(HasSubstr("rank 3 (host n4, process "), HasSubstr(") has not answered for ")));
  EXPECT_EQ(attempts(run).back()["ranks"], 2);
}

// kill -9 at random moments: of one rank, of all of them, of the launcher; every other time in a save.
TEST_F(ClusterTest, SurvivesRandomKills) {
  const char* const wanted = std::getenv("LOCKSTEP_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : kKills;
  std::mt19937_64 random(7);
  const auto pick = [&](int most) { return static_cast<int>(random() % static_cast<std::uint64_t>(most + 1)); };
  const fs::path run = folder_of("kills");
  int steps = 300;
  int launches = 0;
  int in_save = 0;
  int of_all = 0;
  int of_launchers = 0;
  std::vector<std::string> hosts = {"n1", "n2", "n3", "n4"};
  // The goal moves on, so that there is always something left to interrupt.
  const auto settings_now = [&] {
    return Words{"train.steps=" + std::to_string(steps), "schedule.name=constant",
                 "data.valid=", "evaluate.every_steps=0", "checkpoint.every_steps=25"};
  };
  std::set<ino_t> left;
  const auto in_a_save = [&] {
    const std::set<ino_t> now = saves_in(run / "checkpoints");
    return std::any_of(now.begin(), now.end(), [&](ino_t folder) { return !left.contains(folder); });
  };
  std::unique_ptr<Process> process;
  for (int done = 0; done < kills && !HasFailure();) {
    if (!process || !process->is_running()) {
      ASSERT_LE(++launches, 2 * kills + 4) << "the job ends before it can be killed";
      steps += 600;
      process = std::make_unique<Process>(by_ssh("kills", settings_now()));
      wait_for_step(process.get(), run, 1, 4, 1);
    }
    const int whom = pick(5);
    Words victims_on = {hosts[static_cast<std::size_t>(pick(3))]};
    if (whom == 0) {
      victims_on = hosts;
    }
    std::vector<pid_t> victims;
    for (const std::string& host : whom == 1 ? Words{"n1"} : victims_on) {
      for (const pid_t victim : cluster_->processes(host, whom == 1 ? "lockstep launch" : "lockstep train ")) {
        victims.push_back(victim);
      }
    }
    std::this_thread::sleep_for(milliseconds(pick(400)));
    const bool aimed = done % 2 == 1;
    for (int i = 0; aimed && i < 3000 && !in_a_save(); ++i) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    const bool save = in_a_save();
    for (const pid_t victim : victims) {
      kill(victim, SIGKILL);
    }
    if (victims.empty()) {
      continue;
    }
    ++done;
    left = saves_in(run / "checkpoints");
    in_save += save ? 1 : 0;
    of_all += whom == 0 ? 1 : 0;
    of_launchers += whom == 1 ? 1 : 0;
    std::this_thread::sleep_for(milliseconds(whom == 1 ? 3'000 : 1'500));
  }
  process->wait(120);
  steps += 20;
  Process last(by_ssh("kills", settings_now()));
  EXPECT_EQ(last.wait(120).exit_code, 0) << last.err();
  Words undisturbed = settings();
  const Words more = settings_now();
  undisturbed.insert(undisturbed.end(), more.begin(), more.end());
  ASSERT_EQ(job_->train({"not_killed", 1, undisturbed}).exit_code, 0);
  EXPECT_EQ(job_->result("kills"), job_->result("not_killed"));
  EXPECT_EQ(job_->curve("kills"), job_->curve("not_killed"));
  double slowest_detection = 0;
  double slowest_recovery = 0;
  for (const json& attempt : attempts(run)) {
    slowest_detection = std::max(slowest_detection, attempt["detected_s"].get<double>());
    slowest_recovery = std::max(slowest_recovery, attempt["recovered_s"].get<double>());
  }
  std::cout << "fault: " << kills << " kills (" << in_save << " in a save, " << of_all << " of all ranks, "
            << of_launchers << " of the launcher) over " << steps << " steps; slowest detection " << slowest_detection
            << " s, slowest recovery " << slowest_recovery << " s" << std::endl;
}

// The disk that all hosts share and that takes the checkpoints: read-only for a while, then full for a while.
TEST_F(ClusterTest, SurvivesADiskThatCannotBeWritten) {
  // On a busy machine nobody is to be taken for lost: one attempt has to bear it all.
  Process process(by_ssh("disk", {"comm.silence_s=20", "train.steps=" + std::to_string(kManySteps)}));
  const auto wait_until = [&process](const auto& holds, const std::string& what) {
    for (int i = 0; i < 60'000 && !holds() && process.is_running(); ++i) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    EXPECT_TRUE(holds()) << what << " did not come: " << process.err();
  };
  const auto wait_for_save = [&](const std::set<std::string>& earlier) {
    wait_until([&] { return finished_saves("disk") != earlier; }, "a checkpoint");
  };
  const auto wait_for_words = [&](const std::string& words) {
    wait_until([&] { return process.err().find(words) != std::string::npos; }, words);
  };
  wait_for_save({});
  disk_->set_read_only(true);
  wait_for_words("Read-only file system");
  const std::set<std::string> before = finished_saves("disk");
  disk_->set_read_only(false);
  wait_for_save(before);
  std::ofstream(disk_->folder() / "filler") << std::string(std::size_t{64} << 20, 'x');
  wait_for_words("No space left on device");
  fs::remove(disk_->folder() / "filler");
  EXPECT_EQ(process.wait(100).exit_code, 0) << process.err();
  EXPECT_EQ(attempts(folder_of("disk")).size(), 1U) << attempts(folder_of("disk")).front();
  expect_the_undisturbed_result("disk", "undisturbed_long");
}

// The job saves before its time is up, goes back into the queue, and goes on.
TEST_F(ClusterTest, GoesOnInTheNextTimeLimitUnderSlurm) {
  const std::string run = "walltime";
  const std::string id = submit(launch_words(run, {"--slurm", "--nodes", "4", "--time", "1", "--signal", "30"},
                                             {"train.steps=" + std::to_string(kManySteps)}));
  // Slurm looks twice a minute: the signal comes within a minute of the start. Until then one rank stands still most of
  // the time, so that no machine is fast enough to be done before.
  const json job = wait_for_step(nullptr, folder_of(run), 1, 4, 5);
  const pid_t rank = job["ranks"][2]["process"];
  for (int i = 0; i < 300 && log_of(run, id).find("saving after the step in progress") == std::string::npos; ++i) {
    kill(rank, SIGSTOP);
    std::this_thread::sleep_for(milliseconds(200));
    kill(rank, SIGCONT);
    std::this_thread::sleep_for(milliseconds(20));
  }
  EXPECT_EQ(wait_for_end(id, 120), "COMPLETED") << log_of(run, id);
  EXPECT_THAT(log_of(run, id), HasSubstr("goes back into the queue"));
  expect_the_undisturbed_result(run, "undisturbed_long");
  EXPECT_THAT(on_n1({"scontrol", "show", "job", "-o", id}).out, HasSubstr(" Restarts="));
  EXPECT_THAT(on_n1({"scontrol", "show", "job", "-o", id}).out, testing::Not(HasSubstr(" Restarts=0 ")));
}

// Two tasks of an array, one at a time, go on with one run. The first saves by itself when its time is almost up: Slurm
// sends no signal, and what is left is still enough. That is ten seconds before the end, and so two after the
// beginning: fast machines have not done all steps by then, and on slow ones, which have not done any, the save waits
// for them.
TEST_F(ClusterTest, AnArraysTasksGoOnWithOneRun) {
  const fs::path script = job_->folder() / "array.sbatch";
  std::string command;
  for (const std::string& word : launch_words("array", {}, {"train.steps=" + std::to_string(kManySteps)})) {
    command += " '" + word + "'";
  }
  std::ofstream(script) << "#!/bin/bash\n"
                           "#SBATCH --array=1-2%1 --nodes=4 --ntasks-per-node=1 --requeue --open-mode=append\n"
                           "#SBATCH --output="
                        << (job_->folder() / "array-%a.log").string()
                        << "\n"
                           "if [ $SLURM_ARRAY_TASK_ID = 1 ] && [ -z \"${SLURM_RESTART_COUNT:-}\" ]; then\n"
                           "  export SLURM_JOB_END_TIME=$(($(date +%s) + 12))\n"
                           "fi\n"
                           "exec"
                        << command << "\n";
  const std::string id = submit({"sbatch", script.string()});
  EXPECT_EQ(wait_for_end(id + "_1", 120), "COMPLETED");
  EXPECT_EQ(wait_for_end(id + "_2", 60), "COMPLETED");
  const std::string log = read_file(job_->folder() / "array-1.log");
  EXPECT_THAT(log, AllOf(HasSubstr("launch: the job's time is almost up; saving after the step in progress"),
                         HasSubstr("launch: saved; Slurm job " + id + "_1 goes back into the queue")));
  expect_the_undisturbed_result("array", "undisturbed_long");
  const std::vector<json> all = attempts(folder_of("array"));
  ASSERT_GE(all.size(), 2U) << log;
  EXPECT_EQ(all[0]["slurm_job"], id + "_1");
  EXPECT_EQ(all[1]["first_step"], all[0]["last_step"]);
}

TEST_F(ClusterTest, SurvivesAPreemption) {
  const std::string id = submit(launch_words("preempted", {"--slurm", "--nodes", "4", "--partition", "low"},
                                             {"train.steps=" + std::to_string(kManySteps)}));
  wait_for_step(nullptr, folder_of("preempted"), 1, 4, 20);
  submit(
      {"sbatch", "--partition=high", "--nodes=4", "--time=1", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"});
  EXPECT_EQ(wait_for_end(id, 100), "COMPLETED") << log_of("preempted", id);
  EXPECT_THAT(log_of("preempted", id), HasSubstr("launch: saved; "));
  expect_the_undisturbed_result("preempted", "undisturbed_long");
}

// Saved, and not put back. The run has a blank in its name, which is one in the batch script and in paths.
TEST_F(ClusterTest, SavesAndStaysAwayWhenCancelled) {
  const std::string id = submit(launch_words("cancelled run", {"--slurm", "--nodes", "4"}));
  wait_for_step(nullptr, folder_of("cancelled run"), 1, 4, 25);
  EXPECT_EQ(on_n1({"scancel", id}).exit_code, 0);
  EXPECT_EQ(wait_for_end(id, 40), "CANCELLED");
  std::this_thread::sleep_for(milliseconds(3'000));
  EXPECT_EQ(state_of(id), "CANCELLED") << log_of("cancelled run", id);
  const int saved = job_->result("cancelled run").step;
  EXPECT_GE(saved, 25) << log_of("cancelled run", id);
  EXPECT_LT(saved, kSteps);
  // By hand, on other hosts' ranks.
  Process process(by_ssh("cancelled run"));
  EXPECT_EQ(process.wait(100).exit_code, 0) << process.err();
  expect_the_undisturbed_result("cancelled run");
}

// The script says --resume none, which was meant for the job's first start.
TEST_F(ClusterTest, SavesWhenSignalledThroughSlurm) {
  const std::string id = submit(launch_words("signalled", {"--slurm", "--nodes", "4", "--resume", "none"}));
  wait_for_step(nullptr, folder_of("signalled"), 1, 4, 25);
  EXPECT_EQ(on_n1({"scancel", "--signal=USR1", "--batch", id}).exit_code, 0);
  EXPECT_EQ(wait_for_end(id, 100), "COMPLETED") << log_of("signalled", id);
  EXPECT_THAT(log_of("signalled", id), HasSubstr("goes back into the queue"));
  expect_the_undisturbed_result("signalled");
  tell("a signal through Slurm", folder_of("signalled"));
  // On a busy machine a rank may be taken for lost on the way, and there is one attempt more, which begins anew where
  // nothing has been saved yet; behind the one that was signalled nothing is computed again.
  const std::vector<json> all = attempts(folder_of("signalled"));
  int saved = 0;
  for (std::size_t i = 1; i < all.size(); ++i) {
    EXPECT_EQ(all[i]["slurm_job"], id);
    if (all[i - 1]["exit_code"] == 75) {
      EXPECT_EQ(all[i]["first_step"], all[i - 1]["last_step"]);
      ++saved;
    }
    if (saved > 0) {
      EXPECT_GE(all[i]["first_step"], 25) << "started over";
    }
  }
  EXPECT_EQ(saved, 1) << log_of("signalled", id);
}

TEST_F(ClusterTest, GoesOnWithoutANodeThatSlurmLost) {
  const std::string id = submit(launch_words("lost", {"--slurm", "--nodes", "4"}));
  wait_for_step(nullptr, folder_of("lost"), 1, 4, 25);
  cluster_->call("node", {"n4", "down"});
  EXPECT_EQ(wait_for_end(id, 100), "COMPLETED") << log_of("lost", id);
  expect_the_undisturbed_result("lost");
  tell("a node of a Slurm job lost", folder_of("lost"));
}

// By srun, one by one.
TEST_F(ClusterTest, TrainsThroughParameterServersUnderSlurm) {
  const std::string id = submit(launch_words("served_slurm", {"--slurm", "--nodes", "4", "--backend", "server"}));
  EXPECT_EQ(wait_for_end(id, 100), "COMPLETED") << log_of("served_slurm", id);
  expect_the_undisturbed_result("served_slurm");
  EXPECT_EQ(attempts(folder_of("served_slurm")).size(), 1U) << log_of("served_slurm", id);
}

// Without lockstep launch: the ranks coordinate themselves.
TEST_F(ClusterTest, TrainsUnderPlainSrunAndRefusesSingletons) {
  const ProcessResult result = by_plain_srun("srun", {});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("srun");

  Words train = job_->command({"srun", 1, settings()});
  train.erase(train.begin(), train.begin() + 2);
  Words without = {"srun", "--nodes=4", "--ntasks=4", "--mpi=none"};
  without.insert(without.end(), train.begin(), train.end());
  const ProcessResult refused = run_process(cluster_->on("n1", without));
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("srun started 4 tasks but gave them no PMIx"));
}

// As long as the others have nothing to wait for at the end of MPI_Init, they meet a rank that cannot take messages
// yet.
TEST_F(ClusterTest, WaitsUnderSlurmForARankThatIsSlowInMpisStart) {
  const std::string preload = std::string("LD_PRELOAD=") + LOCKSTEP_SLOW_MPI_START;
  const ProcessResult result = by_plain_srun("slow_srun", {"env", preload});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("slow_srun");

  Words launch = launch_words("slow", {});
  launch.insert(launch.begin() + 1, preload);
  launch.insert(launch.begin(), {"salloc", "--quiet", "--nodes=4", "--ntasks-per-node=1"});
  const ProcessResult launched = run_process(cluster_->on("n1", launch));
  EXPECT_EQ(launched.exit_code, 0) << launched.err;
  EXPECT_EQ(attempts(folder_of("slow")).size(), 1U) << launched.err;
  expect_the_undisturbed_result("slow");
}

}  // namespace
}  // namespace lockstep
