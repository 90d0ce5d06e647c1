// Parameter servers and workers as the launcher starts them, one by one, with shell scripts in their places: what is
// started again, where, and what ends an attempt.
#include "launcher/job/served_processes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/file.h"
#include "launcher/job/served_commands.h"
#include "tests/support/captured_log.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;
using testing::StartsWith;
using Words = std::vector<std::string>;

// Writes a line into FOLDER/rank-N or FOLDER/server-N, "PID MODE TOKEN VALUE ARGUMENTS", then waits until the file
// FOLDER/exit-rank-N, or FOLDER/exit for all, says with which code it is to end.
constexpr const char* kProgram = R"sh(#!/bin/sh
folder=$(dirname "$0")
if [ "$1" = serve ]; then part=${5%/*}; name=server-$part; else name=rank-$LOCKSTEP_RANK; fi
echo "$$ $(stat -c %a "$LOCKSTEP_TOKEN_FILE") $(cat "$LOCKSTEP_TOKEN_FILE") value=$VALUE $*" >>"$folder/$name"
if [ "$1" = serve ]; then echo "0.0.0.0:400$part"; fi
trap 'echo stopped >>"$folder/$name-signals"' USR1
while [ ! -e "$folder/exit" ] && [ ! -e "$folder/exit-$name" ]; do sleep 0.02; done
if [ -e "$folder/exit-$name" ]; then
  code=$(cat "$folder/exit-$name")
  rm "$folder/exit-$name"
  echo "$name says why" >&2
  exit "$code"
fi
exit "$(cat "$folder/exit")"
)sh";

// As ssh: HOST COMMAND. Hosts are down whose name is that of a file.
constexpr const char* kSsh = R"sh(#!/bin/sh
folder=$(dirname "$0")
if [ -e "$folder/down-$1" ]; then exit 255; fi
printf '%s %s\n' "$1" "$2" >>"$folder/ssh-commands"
exec env -i HOME="$folder" PATH="$PATH" TMPDIR="$folder" sh -c "$2"
)sh";

class ServedProcessesTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { std::signal(SIGPIPE, SIG_IGN); }

  ServedProcessesTest() {
    write_program("program", kProgram);
    write_program("ssh", kSsh);
    fs::create_directory(run_);
    request_.program = (folder_ / "program").string();
    request_.worker = {request_.program, "train"};
    request_.ssh = (folder_ / "ssh").string();
    request_.ranks = 2;
    request_.servers = 2;
    request_.config.comm.silence_s = 0;
  }
  ~ServedProcessesTest() override {
    say("exit", "0");
    processes_.reset();
  }

  void write_program(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
    fs::permissions(folder_ / name, fs::perms::owner_all);
  }
  void say(const std::string& file, const std::string& text) const {
    std::ofstream(folder_ / (file + ".new")) << text;
    fs::rename(folder_ / (file + ".new"), folder_ / file);
  }
  void start() {
    policy_ = std::make_unique<RestartPolicy>(request_.max_restarts, false);
    coordinator_ = std::make_unique<control::Coordinator>(
        control::Coordinator::Options{.on_trouble = [](const std::vector<control::Trouble>&) {}});
    coordinator_->begin_attempt(1, request_.ranks);
    processes_ =
        std::make_unique<ServedProcesses>(ServedProcesses::Surroundings{.request = request_,
                                                                        .coordinator = *coordinator_,
                                                                        .policy = *policy_,
                                                                        .output = output_,
                                                                        .log = log_.log(),
                                                                        .run = run_,
                                                                        .progress = [this] { return progress_; }},
                                          ServedProcesses::Plan{.attempt = 1,
                                                                .placement = placement_of(request_, request_.hosts),
                                                                .resume = "none",
                                                                .variables = {{"VALUE", "of the job"}}});
  }
  void tend_until(const std::function<bool()>& holds) {
    for (int i = 0; i < 3'000 && !holds(); ++i) {
      processes_->tend(10);
    }
    ASSERT_TRUE(holds()) << log_.take();
  }
  // What the processes that were this member wrote when they came up.
  [[nodiscard]] Words lives(const std::string& member) const {
    Words all;
    std::ifstream file(folder_ / member);
    for (std::string line; std::getline(file, line);) {
      all.push_back(line);
    }
    return all;
  }
  void wait_for_life(const std::string& member, std::size_t number) {
    tend_until([&] { return lives(member).size() >= number; });
  }
  void start_all() {
    start();
    for (const char* member : {"server-1", "server-2", "rank-0", "rank-1"}) {
      wait_for_life(member, 1);
    }
  }
  void kill_last(const std::string& member) const {
    const Words all = lives(member);
    ASSERT_FALSE(all.empty());
    ::kill(std::stoi(all.back()), SIGKILL);
  }
  // All end with this code.
  int end_with(const std::string& code) {
    say("exit", code);
    tend_until([&] { return processes_->exit_code().has_value() || processes_->fault(); });
    return processes_->exit_code().value_or(-1);
  }
  RankProcesses::Fault wait_for_fault() {
    tend_until([&] { return processes_->fault().has_value(); });
    return processes_->fault().value_or(RankProcesses::Fault{});
  }
  std::vector<nlohmann::json> replacements() {
    processes_.reset();
    std::vector<nlohmann::json> all;
    std::ifstream file(attempts_file(run_));
    for (std::string line; std::getline(file, line);) {
      all.push_back(nlohmann::json::parse(line));
    }
    return all;
  }

  TemporaryFolder folder_;
  const fs::path run_ = folder_ / "run";
  CapturedLog log_;
  JobOutput output_{run_, log_.log()};
  LaunchRequest request_;
  AttemptProgress progress_;
  std::unique_ptr<RestartPolicy> policy_;
  std::unique_ptr<control::Coordinator> coordinator_;
  std::unique_ptr<ServedProcesses> processes_;
};

TEST_F(ServedProcessesTest, GivesWorkersTheAddressesThatServersSay) {
  start_all();
  EXPECT_THAT(lives("server-2"), ElementsAre(HasSubstr(" serve --workers 2 --part 2/2 --listen 127.0.0.1 --port 0")));
  EXPECT_THAT(lives("rank-1"),
              ElementsAre(AllOf(HasSubstr(" value=of the job train "),
                                HasSubstr(" --set comm.servers=127.0.0.1:4001,127.0.0.1:4002 --resume none"))));
  EXPECT_EQ(end_with("75"), 75);
  EXPECT_THAT(replacements(), SizeIs(0));
}

TEST_F(ServedProcessesTest, GivesAllOneTokenInAFileOfTheOwnerThatGoesWithThem) {
  start_all();
  std::string mode;
  std::string token;
  std::istringstream(lives("rank-0").front().substr(lives("rank-0").front().find(' '))) >> mode >> token;
  EXPECT_EQ(mode, "600");
  EXPECT_EQ(token.size(), 64U);
  EXPECT_THAT(lives("server-1").front(), HasSubstr(" 600 " + token + " "));
  EXPECT_EQ(end_with("0"), 0);
}

TEST_F(ServedProcessesTest, StartsAKilledWorkerAgainAndNothingElse) {
  start_all();
  progress_ = {.opened = true, .step = 7};
  kill_last("rank-1");
  wait_for_life("rank-1", 2);
  EXPECT_THAT(lives("rank-1").back(), HasSubstr(" --resume auto"));
  EXPECT_THAT(log_.take(), HasSubstr("warning: launch: failed after step 7: rank 1 was ended by signal 9; starting "
                                     "rank 1 again (restart 1 of at most 100)\n"));
  EXPECT_EQ(end_with("0"), 0);
  for (const char* other : {"server-1", "server-2", "rank-0"}) {
    EXPECT_THAT(lives(other), SizeIs(1)) << other;
  }
  const std::vector<nlohmann::json> all = replacements();
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["replaced"], "rank 1");
  EXPECT_EQ(all[0]["step"], 7);
  EXPECT_EQ(all[0]["cause"], "rank 1 was ended by signal 9");
  EXPECT_EQ(all[0]["recovered_s"], 0);
}

TEST_F(ServedProcessesTest, StartsAKilledServerAgainOnItsPort) {
  start_all();
  progress_ = {.opened = true, .step = 7};
  kill_last("server-2");
  wait_for_life("server-2", 2);
  EXPECT_THAT(lives("server-2").back(), HasSubstr(" --part 2/2 --listen 127.0.0.1 --port 4002"));
  // The job got on: once as soon as heartbeats can tell, and once after.
  tend_until([&] {
    ++progress_.step;
    return fs::exists(attempts_file(run_));
  });
  EXPECT_EQ(end_with("0"), 0);
  EXPECT_THAT(lives("rank-0"), SizeIs(1));
  EXPECT_THAT(log_.take(), HasSubstr("launch: training again "));
  const std::vector<nlohmann::json> all = replacements();
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["replaced"], "server 2");
  EXPECT_GT(all[0]["recovered_s"], 0);
}

// As the coordinator tells of it: a process that was stopped is not waited for.
TEST_F(ServedProcessesTest, KillsAndReplacesAWorkerThatIsSilent) {
  start_all();
  const pid_t stopped = std::stoi(lives("rank-0").back());
  ::kill(stopped, SIGSTOP);
  EXPECT_TRUE(processes_->take({.kind = control::TroubleKind::kSilent,
                                .fatal = false,
                                .rank = 0,
                                .host = "localhost",
                                .text = "rank 0 has not answered",
                                .silent_seconds = 2}));
  wait_for_life("rank-0", 2);
  EXPECT_NE(::kill(stopped, 0), 0);
  EXPECT_EQ(end_with("0"), 0);
  const std::vector<nlohmann::json> all = replacements();
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["cause"], "rank 0 has not answered");
  EXPECT_EQ(all[0]["detected_s"], 2);
}

TEST_F(ServedProcessesTest, ASlowWorkerIsNotReplaced) {
  start_all();
  EXPECT_FALSE(processes_->take({.kind = control::TroubleKind::kStill, .fatal = false, .lost = false, .rank = 0}));
  EXPECT_FALSE(processes_->take({.kind = control::TroubleKind::kMissing, .rank = 0}));
  EXPECT_TRUE(processes_->take({.kind = control::TroubleKind::kLeft, .lost = false, .rank = 0, .exit_code = 75}));
  EXPECT_EQ(end_with("0"), 0);
  EXPECT_THAT(lives("rank-0"), SizeIs(1));
}

TEST_F(ServedProcessesTest, AServerThatEndsTheJobNamesTheWorkerThatWasLost) {
  start_all();
  kill_last("rank-1");
  say("exit-server-1", "1");
  const RankProcesses::Fault fault = wait_for_fault();
  EXPECT_EQ(fault.failure.cause, "rank 1 was ended by signal 9");
  EXPECT_FALSE(fault.failure.refused);
  EXPECT_FALSE(fault.exit_code.has_value());
}

TEST_F(ServedProcessesTest, AServerThatEndsByItselfEndsTheAttempt) {
  start_all();
  say("exit-server-2", "1");
  const RankProcesses::Fault fault = wait_for_fault();
  EXPECT_EQ(fault.failure.cause, "server 2 ended with exit code 1: server-2 says why");
  EXPECT_TRUE(fault.failure.is_counted);
  processes_->end();
  say("exit", "1");
  tend_until([&] { return processes_->exit_code().has_value(); });
  EXPECT_EQ(processes_->exit_code(), 1);
}

TEST_F(ServedProcessesTest, AServerThatIsRefusedEndsTheAttempt) {
  start_all();
  say("exit-server-1", "2");
  EXPECT_TRUE(wait_for_fault().failure.refused);
}

TEST_F(ServedProcessesTest, AWorkerThatIsRefusedEndsTheAttempt) {
  start_all();
  say("exit-rank-1", "2");
  const RankProcesses::Fault fault = wait_for_fault();
  EXPECT_EQ(fault.failure.cause, "rank 1 ended with exit code 2: rank-1 says why");
  EXPECT_TRUE(fault.failure.refused);
  EXPECT_TRUE(fault.failure.again_is_useless);
}

TEST_F(ServedProcessesTest, AFailureAtTheSameStepIsNotRepeatedForEver) {
  start_all();
  progress_ = {.opened = true, .step = 7};
  for (std::size_t life = 1; life <= 3; ++life) {
    wait_for_life("rank-1", life);
    kill_last("rank-1");
  }
  const RankProcesses::Fault fault = wait_for_fault();
  EXPECT_EQ(fault.exit_code, 1);
  EXPECT_THAT(fault.failure.cause, StartsWith("failed 3 times after step 7: rank 1 was ended by signal 9"));
}

// Those that die together are one failure.
TEST_F(ServedProcessesTest, RespectsTheNumberOfRestarts) {
  request_.max_restarts = 1;
  start_all();
  progress_ = {.opened = true, .step = 7};
  kill_last("rank-0");
  kill_last("rank-1");
  wait_for_life("rank-0", 2);
  wait_for_life("rank-1", 2);
  kill_last("rank-1");
  const RankProcesses::Fault fault = wait_for_fault();
  EXPECT_EQ(fault.exit_code, 1);
  EXPECT_THAT(fault.failure.cause, HasSubstr("1 restart made, --max-restarts allows no more"));
}

TEST_F(ServedProcessesTest, ALossWhileStoppingEndsTheAttempt) {
  start_all();
  processes_->stop(true);
  tend_until([&] { return fs::exists(folder_ / "rank-0-signals") && fs::exists(folder_ / "rank-1-signals"); });
  EXPECT_FALSE(fs::exists(folder_ / "server-1-signals"));
  kill_last("rank-1");
  EXPECT_EQ(wait_for_fault().failure.cause, "rank 1 was ended by signal 9");
  EXPECT_THAT(lives("rank-1"), SizeIs(1));
}

class ServedHostsTest : public ServedProcessesTest {
 protected:
  ServedHostsTest() {
    // Names that are nobody's, so that all are reached through the script.
    request_.hosts = {{"h1", 1}, {"h2", 1}, {"h3", 1}};
  }
  [[nodiscard]] std::string commands_for(const std::string& host) const {
    std::string found;
    std::ifstream file(folder_ / "ssh-commands");
    for (std::string line; std::getline(file, line);) {
      found += line.starts_with(host + " ") ? line + "\n" : "";
    }
    return found;
  }
};

TEST_F(ServedHostsTest, PassesSecretsWhereNobodySeesThem) {
  start_all();
  const std::string line = lives("rank-1").back();
  EXPECT_THAT(line, AllOf(HasSubstr(" 600 "), HasSubstr(" value=of the job train "),
                          HasSubstr(" --set comm.servers=h1:4001,h2:4002 ")));
  EXPECT_THAT(commands_for("h2"), AllOf(HasSubstr(" serve "), HasSubstr(" train "), HasSubstr("--listen 0.0.0.0")));
  const std::string token = line.substr(line.find(" 600 ") + 5, 64);
  EXPECT_THAT(read_file(folder_ / "ssh-commands"), AllOf(Not(HasSubstr(token)), Not(HasSubstr("of the job"))));
  EXPECT_EQ(end_with("0"), 0);
  for (const auto& entry : fs::directory_iterator(folder_.path())) {
    EXPECT_FALSE(entry.path().filename().string().starts_with("lockstep.")) << "left behind: " << entry.path();
  }
}

TEST_F(ServedHostsTest, SignalsAndKillsOnOtherHosts) {
  start_all();
  processes_->stop(true);
  tend_until([&] { return fs::exists(folder_ / "rank-1-signals"); });
  const pid_t there = std::stoi(lives("rank-1").back());
  ::kill(there, SIGSTOP);
  processes_->end();
  processes_->kill();
  tend_until([&] { return processes_->exit_code().has_value(); });
  for (int i = 0; i < 1'000 && ::kill(there, 0) == 0; ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_NE(::kill(there, 0), 0);
}

// As Slurm does, which signals all processes of a step.
TEST_F(ServedHostsTest, TheShellBetweenWaitsForAWorkerThatSaves) {
  start_all();
  const pid_t worker = std::stoi(lives("rank-1").back());
  std::ifstream stat_file("/proc/" + std::to_string(worker) + "/stat");
  std::string text;
  std::getline(stat_file, text);
  std::istringstream behind_name(text.substr(text.rfind(')') + 1));
  char state = '?';
  pid_t shell = 0;
  behind_name >> state >> shell;
  ASSERT_GT(shell, 1);
  for (const int number : {SIGTERM, SIGUSR1}) {
    ::kill(shell, number);
    std::this_thread::sleep_for(milliseconds(50));
    processes_->tend(10);
  }
  EXPECT_EQ(::kill(worker, 0), 0);
  EXPECT_EQ(end_with("75"), 75);
  EXPECT_THAT(lives("rank-1"), SizeIs(1));
}

TEST_F(ServedHostsTest, AWorkerIsStartedAgainOnItsOwnHost) {
  start_all();
  kill_last("rank-1");
  wait_for_life("rank-1", 2);
  EXPECT_EQ(commands_for("h3"), "");
  EXPECT_EQ(end_with("0"), 0);
  EXPECT_EQ(replacements().at(0)["host"], "h2");
}

TEST_F(ServedHostsTest, AWorkerWhoseHostIsGoneMovesToAnother) {
  request_.servers = 1;  // on h1
  start();
  wait_for_life("rank-1", 1);
  say("down-h2", "");
  kill_last("rank-1");
  wait_for_life("rank-1", 2);
  EXPECT_THAT(commands_for("h3"), HasSubstr(" train "));
  EXPECT_EQ(end_with("0"), 0);
  EXPECT_EQ(replacements().at(0)["host"], "h3");
}

TEST_F(ServedHostsTest, AServerWhoseHostIsGoneEndsTheAttempt) {
  start_all();
  say("down-h2", "");
  kill_last("server-2");
  const RankProcesses::Fault fault = wait_for_fault();
  EXPECT_EQ(fault.failure.cause, "server 2 (host h2) was ended by signal 9; no host can take it");
  EXPECT_FALSE(fault.failure.is_counted) << "it was, when it was to be started again";
}

TEST(ServedCommandsTest, PutsServersOnTheFirstHostsAndFillsHostsWithRanks) {
  const Placement placement = {4, {{"a", 3}, {"b", 1}}};
  EXPECT_THAT(hosts_of_ranks(placement), ElementsAre("a", "a", "a", "b"));
  EXPECT_THAT(hosts_of_servers(placement, 3), ElementsAre("a", "b", "a"));
  EXPECT_THAT(hosts_of_ranks({2, {}}), ElementsAre("", ""));
  EXPECT_THAT(hosts_of_servers({2, {}}, 1), ElementsAre(""));
}

TEST(RestartPolicyTest, WaitsLongerEachTimeNothingWasGained) {
  RestartPolicy policy(3, false);
  const Failure failure = {.cause = "x", .is_telling = false};
  EXPECT_EQ(policy.after("rank 1", failure).pause, milliseconds(500));
  EXPECT_EQ(policy.after("rank 1", failure).pause, milliseconds(1'000));
  EXPECT_EQ(policy.after("rank 2", {.cause = "y", .progressed = true}).pause, milliseconds(0));
  EXPECT_EQ(policy.after("rank 1", failure).exit_code, 1);
}

TEST(RestartPolicyTest, GivesUpWhatDoesNotComeUp) {
  const Failure failure = {.cause = "mpirun ended with exit code 1", .is_telling = false};
  RestartPolicy never(100, false);
  EXPECT_FALSE(never.after("", failure).exit_code.has_value());
  EXPECT_FALSE(never.after("", failure).exit_code.has_value());
  EXPECT_FALSE(never.after("", {.cause = "it had come up", .step = 1}).exit_code.has_value());
  EXPECT_FALSE(never.after("", failure).exit_code.has_value());
  EXPECT_FALSE(never.after("", failure).exit_code.has_value());
  const RestartPolicy::Verdict last = never.after("", failure);
  EXPECT_EQ(last.exit_code, 1);
  EXPECT_EQ(last.text,
            "failed 3 times without coming up: mpirun ended with exit code 1; starting again would not help");
  RestartPolicy once(100, true);
  for (int i = 1; i < 30; ++i) {
    EXPECT_FALSE(once.after("", failure).exit_code.has_value()) << i;
  }
  EXPECT_EQ(once.after("", failure).exit_code, 1);
}

TEST(RestartPolicyTest, OutlastsAnOutage) {
  const Failure refusal = {.cause = "no room", .again_is_useless = true, .refused = true};
  EXPECT_EQ(RestartPolicy(100, false).after("", refusal).exit_code, 2);
  RestartPolicy policy(100, false);
  policy.note_opened();
  for (int i = 1; i < 30; ++i) {
    EXPECT_FALSE(policy.after("", refusal).exit_code.has_value()) << i;
  }
  EXPECT_EQ(policy.after("", refusal).exit_code, 2);
}

TEST(RecoveryWatchTest, BelievesStepsThatWereDoneAfterTheLastStart) {
  RecoveryWatch watch(milliseconds(400));
  const RecoveryWatch::Clock::time_point begin{};
  watch.add({.process = "rank 1", .cause = "a"}, begin, begin + milliseconds(100));
  EXPECT_TRUE(watch.has("rank 1"));
  EXPECT_THAT(watch.note(9, begin + milliseconds(450)), SizeIs(0)) << "may be from before";
  EXPECT_THAT(watch.note(9, begin + milliseconds(500)), SizeIs(0));
  watch.add({.process = "rank 2", .cause = "b"}, begin, begin + milliseconds(550));
  EXPECT_EQ(watch.causes(), "a; b");
  EXPECT_THAT(watch.note(10, begin + milliseconds(1'000)), SizeIs(0));
  const std::vector<Replacement> made_up = watch.note(11, begin + milliseconds(1'100));
  ASSERT_EQ(made_up.size(), 2U);
  EXPECT_DOUBLE_EQ(made_up[1].recovered_s, 1.1);
  EXPECT_FALSE(watch.is_open());
}

}  // namespace
}  // namespace lockstep
