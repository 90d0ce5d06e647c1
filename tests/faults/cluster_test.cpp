// The faults that only several hosts have: links that go down, hosts that lose their power, a shared disk that cannot
// be written. Every case ends with the weights and the loss curve of a run that nobody disturbed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/faults/cluster_fixture.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr int kKills = 4;  // LOCKSTEP_KILLS says another number, for campaigns by hand

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

}  // namespace
}  // namespace lockstep
