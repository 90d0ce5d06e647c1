// lockstep launch and lockstep status as people run them, with the real mpirun on this machine.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/file.h"
#include "tests/launcher/launch_fixture.h"
#include "tests/support/training_job.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Words = std::vector<std::string>;

class LaunchTest : public LaunchFixture {};

TEST_F(LaunchTest, TrainsAndKeepsALogForEachRank) {
  const ProcessResult result = launch("whole", {"--ranks", "2"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("whole");
  const std::string end = "train: 1000 steps, in";
  EXPECT_THAT(result.err, HasSubstr("[rank 0] " + end));
  EXPECT_THAT(read_file(folder_of("whole") / "logs" / "rank-00000.log"),
              AllOf(StartsWith("--- attempt 1 on 2 ranks, "), HasSubstr("\n" + end)));
  const std::vector<json> all = attempts("whole");
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["exit_code"], 0);
  EXPECT_EQ(all[0]["last_step"], kSteps);
  EXPECT_EQ(all[0]["cause"], "");
  EXPECT_EQ(status("whole")["state"], "finished");
  EXPECT_FALSE(fs::exists(folder_of("whole") / "coordinator.json"));

  // A launch that is refused changes nothing of that.
  EXPECT_EQ(launch("whole", {"--ranks", "2"}, {"data.train=" + (job_->folder() / "no").string()}).exit_code, 2);
  EXPECT_EQ(attempts("whole").size(), 1U);
  EXPECT_EQ(status("whole")["state"], "finished");
}

TEST_F(LaunchTest, StartsAgainWhenARankWasKilled) {
  Process process(command("killed", {"--ranks", "2"}), environment());
  kill(wait_for_step(process, "killed", 1, 25), SIGKILL);
  kill(wait_for_step(process, "killed", 2, 60, 0), SIGKILL);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("killed");
  EXPECT_THAT(result.err, HasSubstr("starting again (restart 2 of at most 100)"));
  const std::vector<json> all = attempts("killed");
  ASSERT_EQ(all.size(), 3U) << result.err;
  EXPECT_THAT(all[0]["cause"], AllOf(StartsWith("rank 1 (host "), HasSubstr(") is gone; last seen in step ")))
      << all[0];
  EXPECT_THAT(all[1]["cause"], AllOf(StartsWith("rank 0 (host "), HasSubstr(") is gone; last seen in step ")))
      << all[1];
  EXPECT_GE(all[1]["first_step"], 20);
  EXPECT_GT(all[1]["recovered_s"], 0);
}

TEST_F(LaunchTest, NamesAStoppedRankAndStartsAgain) {
  Process process(command("stopped", {"--ranks", "2"}), environment());
  kill(wait_for_step(process, "stopped", 1, 25), SIGSTOP);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("stopped");
  const std::vector<json> all = attempts("stopped");
  ASSERT_EQ(all.size(), 2U);
  EXPECT_THAT(all[0]["cause"], AllOf(StartsWith("rank 1 (host "), HasSubstr(") has not answered for ")));
  EXPECT_LE(all[0]["detected_s"], 2.05);
}

TEST_F(LaunchTest, AConfigurationThatIsEditedMeanwhileChangesNothing) {
  Words words = command("edited", {"--ranks", "2"});
  const fs::path config = own_config(words, "edited.yaml");
  Process process(words, environment());
  const pid_t rank = wait_for_step(process, "edited", 1, 25);
  edit(config);
  kill(rank, SIGKILL);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(attempts("edited").size(), 2U);
  expect_the_first_configuration("edited");

  // The next launch by hand takes it as it is then.
  const std::string text = read_file(job_->folder() / "job.yaml") + "# of the next launch\n";
  write_file_atomic(config, text);
  EXPECT_EQ(run_process(words, environment()).exit_code, 0);
  EXPECT_EQ(read_file(folder_of("edited") / "launch.yaml"), text);
}

TEST_F(LaunchTest, ASubmittedJobStartsFromACopy) {
  const Words surroundings = with_program("sbatch", "echo Submitted batch job 7\n");
  Words words = command("submitted", {"--slurm", "--nodes", "2"});
  const std::string original = read_file(own_config(words, "submitted.yaml"));
  const ProcessResult result = run_process(words, surroundings);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "Submitted batch job 7\n");
  const fs::path copy = folder_of("submitted") / "job.yaml";
  EXPECT_EQ(read_file(copy), original);
  EXPECT_THAT(read_file(folder_of("submitted") / "job.sbatch"),
              AllOf(HasSubstr("\nexec " + std::string(LOCKSTEP_PROGRAM) + " launch " + copy.string() + " --set "),
                    HasSubstr(" --set run.name=submitted --resume auto ")));
  EXPECT_EQ(status("submitted")["state"], "submitted, not started yet");
}

// Ranks that die sooner than they tell of the step that they have done. This mpirun starts none of ours.
TEST_F(LaunchTest, KnowsFromTheFolderHowFarAnAttemptGot) {
  fs::create_directories(folder_of("short"));
  const std::string metrics = (folder_of("short") / "metrics.jsonl").string();
  const Words surroundings =
      with_program("mpirun",
                   "if [ \"$1\" = --version ]; then echo 'mpirun (Open MPI) 4.1.4'; exit 0; fi\n"
                   "for i in 1 2 3 4 5 6 7; do echo \"{\\\"step\\\": $i, \\\"loss\\\": null}\"; done >" +
                       metrics + "\nexit 139\n");
  const ProcessResult result = run_process(command("short", {"--ranks", "2"}), surroundings);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("launch: failed 3 times after step 7: mpirun ended with exit code 139; starting "
                                    "again would not help"));
  const std::vector<json> all = attempts("short");
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[0]["opened"], true);
  EXPECT_EQ(all[0]["last_step"], 7);
}

TEST_F(LaunchTest, GivesUpWhatNeverComesUp) {
  const Words surroundings = with_program("mpirun",
                                          "if [ \"$1\" = --version ]; then echo 'mpirun (Open MPI) 4.1.4'; exit 0; fi\n"
                                          "echo 'There are not enough slots available.' >&2\nexit 213\n");
  const ProcessResult result = run_process(command("never", {"--ranks", "2"}), surroundings);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("There are not enough slots available.\n"
                                    "error: launch: failed 3 times without coming up: mpirun ended with exit code 213; "
                                    "starting again would not help\n"));
  EXPECT_FALSE(fs::exists(folder_of("never")));
}

// The ranks hang in the opening of a file that never opens, and answer all the same.
TEST_F(LaunchTest, NamesARankThatHangsInASystemCall) {
  const fs::path data = job_->folder() / "hanging";
  fs::copy(job_->folder() / "data" / "train", data, fs::copy_options::recursive);
  fs::remove(data / "tokenizer.json");
  ASSERT_EQ(::mkfifo((data / "tokenizer.json").c_str(), 0600), 0);
  const ProcessResult result =
      launch("hanging", {"--ranks", "2", "--max-restarts", "0"}, {"data.train=" + data.string(), "comm.stuck_s=4"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("warning: launch: rank 1 (host "));
  EXPECT_THAT(result.err, HasSubstr(") answers, but its work has stood still for 2.0 s (thread state S); last seen in "
                                    "loading"));
  EXPECT_THAT(result.err, HasSubstr(" its work has stood still for 4.0 s (thread state S); last seen in loading"));
}

TEST_F(LaunchTest, TheFirstSignalSavesAndTheNextLaunchGoesOn) {
  Process process(command("signalled", {"--ranks", "2"}), environment());
  wait_for_step(process, "signalled", 1, 15);
  process.send(SIGTERM);
  const ProcessResult first = process.wait(60);
  EXPECT_EQ(first.exit_code, 75) << first.err;
  EXPECT_EQ(status("signalled")["state"], "saved and stopped");
  EXPECT_EQ(launch("signalled", {"--ranks", "4"}).exit_code, 0);
  expect_the_undisturbed_result("signalled");
}

TEST_F(LaunchTest, ASecondSignalEndsAtOnce) {
  Process process(command("twice", {"--ranks", "2"}, {"train.steps=100000", "comm.silence_s=20"}), environment());
  const pid_t rank = wait_for_step(process, "twice", 1, 5);
  kill(rank, SIGSTOP);  // the save that the first signal asks for never comes
  process.send(SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(700));
  process.send(SIGINT);
  const ProcessResult result = process.wait(30);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, EndsWith("launch: ended by a second signal; the newest checkpoint stays\n"));
  ASSERT_EQ(attempts("twice").size(), 1U);
  EXPECT_EQ(attempts("twice")[0]["cause"], "ended by a second signal");
  expect_end(rank);
}

// The workers hear nothing from the launcher any more, save, and end; nobody is left behind.
TEST_F(LaunchTest, WorkersSaveWhenTheLauncherIsKilled) {
  Process process(command("orphaned", {"--ranks", "2"}), environment());
  const pid_t rank = wait_for_step(process, "orphaned", 1, 25);
  process.send(SIGKILL);
  process.wait();
  expect_end(rank);
  EXPECT_GE(job_->result("orphaned").step, 25);
  EXPECT_EQ(launch("orphaned", {"--ranks", "2"}).exit_code, 0);
  expect_the_undisturbed_result("orphaned");
}

TEST_F(LaunchTest, DoesNotRepeatWhatWouldFailAgain) {
  const ProcessResult refused = launch("refused", {"--ranks", "2"}, {"data.train=" + (job_->folder() / "no").string()});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, Not(HasSubstr("starting again")));
  EXPECT_FALSE(fs::exists(folder_of("refused")));

  // A file where the metrics go cannot be opened, each time anew.
  fs::create_directories(folder_of("same") / "metrics.jsonl" / "folder");
  const ProcessResult same = launch("same", {"--ranks", "2"});
  EXPECT_EQ(same.exit_code, 1);
  EXPECT_THAT(same.err, HasSubstr("launch: failed 3 times after step 0: "));
  EXPECT_EQ(attempts("same").size(), 3U);
}

// A file system that is away for a while, say.
TEST_F(LaunchTest, ARestartThatIsRefusedIsTriedAgain) {
  const fs::path data = job_->folder() / "moved";
  fs::copy(job_->folder() / "data" / "train", data, fs::copy_options::recursive);
  Process process(command("refused-later", {"--ranks", "2"}, {"data.train=" + data.string()}), environment());
  const pid_t rank = wait_for_step(process, "refused-later", 1, 25);
  fs::rename(data, job_->folder() / "away");
  kill(rank, SIGKILL);
  for (int i = 0; i < 1000 && process.is_running() && process.err().find("(restart 3 of") == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  fs::rename(job_->folder() / "away", data);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("refused-later");
}

TEST_F(LaunchTest, EndsWhenThereAreNoRestartsLeft) {
  Process process(command("once", {"--ranks", "2", "--max-restarts", "0"}), environment());
  kill(wait_for_step(process, "once", 1, 5), SIGKILL);
  const ProcessResult result = process.wait(60);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("--max-restarts allows no more"));
  EXPECT_EQ(status("once")["state"], "failed");

  // A job that nobody records goes on.
  EXPECT_EQ(job_->train({"once", 2, settings()}).exit_code, 0);
  EXPECT_EQ(status("once")["state"], "not running");
  EXPECT_EQ(attempts("once").size(), 1U);
}

TEST_F(LaunchTest, StatusTakesTheStateFromTheAttemptThatDecidesIt) {
  const fs::path run = folder_of("decided");
  fs::create_directories(run / "checkpoints");
  const auto line = [](int exit_code, bool opened) {
    return json{{"attempt", 1},    {"started", ""},    {"ended", ""},     {"ranks", 2},     {"hosts", json::array()},
                {"slurm_job", ""}, {"opened", opened}, {"first_step", 0}, {"last_step", 0}, {"exit_code", exit_code},
                {"cause", ""},     {"detected_s", 0},  {"recovered_s", 0}}
               .dump() +
           "\n";
  };
  write_file_atomic(run / "attempts.jsonl", line(0, true) + line(75, false));
  EXPECT_EQ(status("decided")["state"], "finished");
  write_file_atomic(run / "attempts.jsonl", line(75, true) + line(1, false));
  EXPECT_EQ(status("decided")["state"], "failed");
  // Metrics of long before say nothing; those of long after, that the run went on.
  write_file_atomic(run / "metrics.jsonl", "");
  const fs::file_time_type recorded = fs::last_write_time(run / "attempts.jsonl");
  fs::last_write_time(run / "metrics.jsonl", recorded - std::chrono::hours(1));
  EXPECT_EQ(status("decided")["state"], "failed");
  fs::last_write_time(run / "metrics.jsonl", recorded + std::chrono::hours(1));
  EXPECT_EQ(status("decided")["state"], "not running");
}

TEST_F(LaunchTest, StatusTellsWhatEachRankDoesAlsoUnderPlainMpirun) {
  Process process(job_->command({"plain", 2, settings()}));
  wait_for_step(process, "plain", 1, 5);
  const ProcessResult text = run_process({LOCKSTEP_PROGRAM, "status", folder_of("plain")});
  EXPECT_THAT(text.out, AllOf(HasSubstr("state        running\nranks        2 of 2 up, attempt 1\n"),
                              HasSubstr(" of 1000\n"), HasSubstr("   rank  host              process  doing\n")));
  EXPECT_EQ(process.wait().exit_code, 0);
  EXPECT_EQ(status("plain")["state"], "not running");
  EXPECT_EQ(status("plain")["last_step"]["step"], kSteps);
  EXPECT_EQ(run_process({LOCKSTEP_PROGRAM, "status", job_->folder() / "data"}).exit_code, 2);
}

TEST_F(LaunchTest, StatusSkipsLinesThatAreNoneOfARun) {
  const fs::path run = folder_of("foreign");
  fs::create_directories(run);
  const auto text = [&](const std::string& lines) {
    write_file_atomic(run / "metrics.jsonl", lines);
    const ProcessResult result = run_process({LOCKSTEP_PROGRAM, "status", run});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result.out;
  };
  const std::string foreign = R"([1]
{"loss": 1, "step": "q"}
{"loss": "much", "step": 9}
{"loss": 1}
{"valid_loss": 2, "step": 1.5}
{"step": 9, "lo)";
  EXPECT_EQ(text(foreign), "run          " + run.string() + "\nstate        not running\ncheckpoint   none\n");
  const std::string own = "{\"step\": 7, \"loss\": null}\n{\"step\": 6, \"valid_loss\": 2}\n";
  EXPECT_THAT(text(own + foreign), AllOf(HasSubstr("\nlast step    7: loss none, ? tokens/s, "),
                                         HasSubstr("\nvalidation   2.0000 at step 6\n")));
}

// Strangers on the control port: nothing of a job changes.
TEST_F(LaunchTest, DoesNotMindStrangersOnItsPort) {
  Process process(command("strangers", {"--ranks", "2"}), environment());
  wait_for_step(process, "strangers", 1, 5);
  const auto port = json::parse(read_file(folder_of("strangers") / "coordinator.json"))["port"].get<std::uint16_t>();
  for (int i = 0; i < 500 && process.is_running(); ++i) {
    const int stranger = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const std::string garbage(static_cast<std::size_t>(i % 200), static_cast<char>(i));
    if (::connect(stranger, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) {
      (void)::send(stranger, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    }
    ::close(stranger);
  }
  EXPECT_EQ(process.wait(100).exit_code, 0);
  expect_the_undisturbed_result("strangers");
  EXPECT_EQ(attempts("strangers").size(), 1U);
}

TEST_F(LaunchTest, PrintsItsCommandInADryRun) {
  const ProcessResult here = launch("dry", {"--ranks", "2", "--dry-run"});
  EXPECT_EQ(here.exit_code, 0) << here.err;
  EXPECT_THAT(here.out, AllOf(StartsWith("mpirun -np 2 "), HasSubstr(std::string(LOCKSTEP_PROGRAM) + " train "),
                              HasSubstr(" --resume auto\n")));
  const ProcessResult there = launch("dry", {"--hosts", "a:2,b:2", "--dry-run"});
  EXPECT_THAT(there.out, AllOf(StartsWith("mpirun -np 4 "), HasSubstr(" --host a:2,b:2 ")));
  const ProcessResult batch = launch("dry", {"--slurm", "--nodes", "4", "--ranks-per-node", "2", "--time", "4:00:00",
                                             "--partition", "gpu", "--account", "us", "--dry-run"});
  EXPECT_THAT(batch.out, AllOf(StartsWith("#!/bin/bash\n#SBATCH --job-name=dry\n#SBATCH --nodes=4\n"
                                          "#SBATCH --ntasks-per-node=2\n#SBATCH --time=4:00:00\n"
                                          "#SBATCH --partition=gpu\n#SBATCH --account=us\n"),
                               HasSubstr("#SBATCH --signal=B:USR1@120\n#SBATCH --requeue\n"),
                               HasSubstr("\nexec " + std::string(LOCKSTEP_PROGRAM) + " launch ")));
  EXPECT_FALSE(fs::exists(folder_of("dry")));
}

TEST_F(LaunchTest, RefusesWhatItCannotStart) {
  const std::vector<std::pair<Words, std::string>> cases = {
      {{"--ranks", "3"}, "--ranks 3: expected a power of two"},
      {{"--hosts", "a,a"}, "a stands there twice"},
      {{"--hosts", "a,b", "--ranks", "4"}, "the hosts take 2"},
      {{"--hosts", "a:0"}, "found 0 slots"},
      {{"--hosts", "-x"}, "is no name of a host"},
      {{"--hosts", "nowhere", "--ssh", "/bin/false"}, "host nowhere cannot be used: /bin/false ended with exit code 1"},
      {{"--hosts", ""}, "--hosts : no host named; expected a,b:2 or a file"},
      {{"--hosts", "hosts.txt"}, "--hosts hosts.txt: there is no such file"},
      {{"--slurm", "--hosts", ""}, "in a Slurm job its own hosts are used"},
      {{"--starter", "srun"}, "this is no Slurm allocation"},
      {{"--nodes", "2"}, "--nodes requires --slurm"},
      {{"--slurm", "--hosts", "a"}, "in a Slurm job its own hosts are used"},
      {{"--slurm", "--ranks", "3"}, "--ranks 3: expected a power of two"},
      {{"--slurm", "--ranks", "8", "--nodes", "1", "--ranks-per-node", "2"},
       "--ranks 8: the nodes take 2 (--nodes 1, --ranks-per-node 2)"},
      {{"--slurm", "--time", "0:10", "--signal", "60"},
       "--signal 60: --time 0:10 is 60 s, so the job would save and stop as soon as it has started"},
      {{"--slurm", "--time", "4:00:00", "--signal", "999999"}, "--signal"},
      {{"--slurm", "--servers", "2"}, "--servers 2: comm.backend is auto, which has none"},
  };
  for (const auto& [options, message] : cases) {
    const ProcessResult result = launch("refused", options);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    EXPECT_THAT(result.err, AllOf(StartsWith("lockstep launch: "), HasSubstr(message)));
  }
  EXPECT_FALSE(fs::exists(folder_of("refused")));
  // Started by another launcher: N launchers would start N jobs.
  Words inside = job_->command({"refused", 2, settings()});
  inside[3] = "launch";
  EXPECT_EQ(run_process(inside).exit_code, 2);
}

}  // namespace
}  // namespace lockstep
