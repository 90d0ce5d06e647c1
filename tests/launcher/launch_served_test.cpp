// lockstep launch --backend server as people run it: parameter servers and workers on this machine, without MPI.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <tuple>

#include "base/file.h"
#include "tests/launcher/launch_fixture.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::Contains;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using Words = std::vector<std::string>;

class LaunchServedTest : public LaunchFixture {
 protected:
  static Words served(Words options = {}) {
    options.insert(options.begin(), {"--backend", "server", "--ranks", "2"});
    return options;
  }
  // Open MPI, were it started, would not find this component and end the process.
  Words environment() const { return {"OMPI_MCA_pml=none_of_this_name", "TMPDIR=" + temporary_.path().string()}; }

  ProcessResult launch(const std::string& run, const Words& options, const Words& more_settings = {}) const {
    Process process(command(run, options, more_settings), environment());
    return process.wait(100);
  }
  // Waits until both ranks train, another process than `before` is rank `rank`, and it has done that many steps, the
  // last of them itself. Returns its process.
  static pid_t wait_for_rank(Process& process, const std::string& run, std::size_t rank, int step, pid_t before = 0) {
    pid_t found = 0;
    wait_for(process, run, [&](const json& now) {
      const json& ranks = now["ranks"];
      if (ranks.size() != 2 || ranks[rank]["process"] == before || ranks[rank]["completed_step"] < step ||
          ranks[rank]["completed_step"] <= ranks[rank]["first_step"]) {
        return false;
      }
      found = ranks[rank]["process"];
      return true;
    });
    return found;
  }
  // Servers that this launcher has started and that run.
  static std::vector<pid_t> servers_of(const Process& launcher) {
    std::vector<pid_t> found;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      std::ifstream command_file(entry.path() / "cmdline");
      std::ifstream stat_file(entry.path() / "stat");
      const std::string command{std::istreambuf_iterator<char>(command_file), {}};
      std::string stat;
      std::getline(stat_file, stat);
      std::istringstream behind_name(stat.substr(std::min(stat.size(), stat.rfind(')') + 1)));
      char state = 'Z';
      pid_t parent = 0;
      behind_name >> state >> parent;
      if (parent == launcher.pid() && state != 'Z' && command.find(std::string("\0serve\0", 7)) != std::string::npos) {
        found.push_back(std::stoi(entry.path().filename()));
      }
    }
    return found;
  }
  // What attempts and single processes ended of.
  static Words causes(const std::string& run) {
    Words all;
    for (const json& line : attempts(run)) {
      all.push_back(line["cause"]);
    }
    return all;
  }
  void expect_nothing_left() const { EXPECT_TRUE(fs::is_empty(temporary_.path())) << "a token, probably"; }

  TemporaryFolder temporary_;
};

TEST_F(LaunchServedTest, TrainsWithoutMpiAndKeepsALogForEachProcess) {
  const ProcessResult result = launch("whole", served({"--servers", "2"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("whole");
  EXPECT_THAT(result.err, AllOf(HasSubstr("[rank 0] train: 1000 steps, in"), HasSubstr("[server 2] serve: part 2/2")));
  EXPECT_THAT(result.err, Not(HasSubstr("warning")));
  const fs::path logs = folder_of("whole") / "logs";
  EXPECT_THAT(read_file(logs / "rank-00000.log"), StartsWith("--- attempt 1 on 2 ranks, "));
  EXPECT_THAT(read_file(logs / "server-00001.log"), HasSubstr("serve: all workers have ended\n"));
  const std::vector<json> all = attempts("whole");
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[0]["exit_code"], 0);
  EXPECT_EQ(all[0]["last_step"], kSteps);
  EXPECT_EQ(status("whole")["state"], "finished");
  EXPECT_FALSE(fs::exists(folder_of("whole") / "coordinator.json"));
  expect_nothing_left();
}

TEST_F(LaunchServedTest, GoesOnWhenAWorkerWasKilled) {
  Process process(command("killed", served()), environment());
  const pid_t one = wait_for_rank(process, "killed", 1, 25);
  kill(one, SIGKILL);
  wait_for(process, "killed", [](const json&) { return !attempts("killed").empty(); });  // the job has got on
  wait_for_rank(process, "killed", 1, 60, one);
  kill(wait_for_rank(process, "killed", 0, 60), SIGKILL);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("killed");
  EXPECT_THAT(result.err, HasSubstr("(restart 2 of at most 100)"));
  EXPECT_THAT(causes("killed"),
              AllOf(Contains(AllOf(StartsWith("rank 1 (host "), HasSubstr(") is gone; last seen in step "))),
                    Contains(AllOf(StartsWith("rank 0 (host "), HasSubstr(") is gone; last seen in step ")))));
  EXPECT_EQ(status("killed")["state"], "finished");
  expect_nothing_left();
}

TEST_F(LaunchServedTest, AConfigurationThatIsEditedMeanwhileChangesNothing) {
  Words words = command("edited", served());
  const fs::path config = own_config(words, "edited.yaml");
  Process process(words, environment());
  const pid_t rank = wait_for_rank(process, "edited", 1, 25);
  edit(config);
  kill(rank, SIGKILL);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("starting rank 1 again (restart 1 of at most 100)"));
  expect_the_first_configuration("edited");
}

// Put back into the queue by Slurm, whose words are made up here.
TEST_F(LaunchServedTest, ASlurmJobThatIsPutBackGoesOnWithItsFirstConfiguration) {
  Words in_slurm = environment();
  in_slurm.insert(in_slurm.end(),
                  {with_program("scontrol", "echo localhost\n").front(), "SLURM_JOB_ID=7",
                   "SLURM_JOB_NODELIST=localhost", "SLURM_TASKS_PER_NODE=2", "SLURM_JOB_END_TIME=4102444800"});
  Words words = command("requeued", served());
  const fs::path config = own_config(words, "requeued.yaml");
  Process process(words, in_slurm);
  wait_for_rank(process, "requeued", 1, 25);
  process.send(SIGTERM);
  const ProcessResult first = process.wait(60);
  EXPECT_EQ(first.exit_code, 75) << first.err;
  // The folder of the run is found by the file, so that only the rest may be another.
  std::string text = read_file(config);
  text.replace(text.find("lr: 1.0e-3"), 10, "lr: 5.0e-2");
  write_file_atomic(config, text);
  in_slurm.emplace_back("SLURM_RESTART_COUNT=1");
  const ProcessResult second = run_process(words, in_slurm);
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.err, HasSubstr("requeued.yaml has changed; going on with "));
  expect_the_first_configuration("requeued");
}

// The optimizer's state is in parts, of which one is lost with a worker.
TEST_F(LaunchServedTest, GoesOnWhenAWorkerWithItsShardWasKilled) {
  Process process(command("sharded", served(), {"comm.zero=1"}), environment());
  kill(wait_for_rank(process, "sharded", 1, 25), SIGKILL);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("sharded");
}

// One that is stopped keeps its port, so that nobody could take its place as long as it is there.
TEST_F(LaunchServedTest, GoesOnWhenAServerWasKilledOrStopped) {
  for (const auto& [run, signal, cause] : {std::tuple("unserved", SIGKILL, " was ended by signal 9"),
                                           std::tuple("hung", SIGSTOP, " has not answered for ")}) {
    SCOPED_TRACE(run);
    Process process(command(run, served({"--servers", "2"})), environment());
    wait_for_rank(process, run, 0, 25);
    const std::vector<pid_t> servers = servers_of(process);
    ASSERT_EQ(servers.size(), 2U);
    kill(servers[1], signal);
    const ProcessResult result = process.wait(100);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    expect_the_undisturbed_result(run);
    EXPECT_THAT(causes(run), Contains(AllOf(StartsWith("server "), HasSubstr(cause))));
  }
}

TEST_F(LaunchServedTest, NamesAStoppedWorkerAndReplacesIt) {
  Process process(command("stopped", served()), environment());
  kill(wait_for_rank(process, "stopped", 1, 25), SIGSTOP);
  const ProcessResult result = process.wait(100);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("stopped");
  EXPECT_THAT(causes("stopped"), Contains(AllOf(StartsWith("rank 1 (host "), HasSubstr(") has not answered for "))));
}

TEST_F(LaunchServedTest, TheFirstSignalSavesAndTheNextLaunchGoesOnWithMpi) {
  Process process(command("signalled", served()), environment());
  wait_for_rank(process, "signalled", 0, 15);
  process.send(SIGTERM);
  const ProcessResult first = process.wait(60);
  EXPECT_EQ(first.exit_code, 75) << first.err;
  EXPECT_EQ(status("signalled")["state"], "saved and stopped");
  expect_nothing_left();
  EXPECT_EQ(LaunchFixture::launch("signalled", {"--ranks", "4"}).exit_code, 0);
  expect_the_undisturbed_result("signalled");
}

TEST_F(LaunchServedTest, ASecondSignalEndsAtOnce) {
  Process process(command("twice", served(), {"train.steps=100000", "comm.silence_s=20"}), environment());
  const pid_t rank = wait_for_rank(process, "twice", 1, 5);
  const std::vector<pid_t> servers = servers_of(process);
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
  ASSERT_EQ(servers.size(), 1U);
  expect_end(servers[0]);
  expect_nothing_left();
}

// Also without the channel over which workers hear of a stop otherwise.
TEST_F(LaunchServedTest, StopsWorkersThatAreNotWatched) {
  Process process(command("unwatched", served(), {"comm.silence_s=0"}), environment());
  for (int i = 0; i < 2'000 && !fs::exists(job_->checkpoints("unwatched") / "step-00000010"); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  process.send(SIGTERM);
  EXPECT_EQ(process.wait(60).exit_code, 75);
  EXPECT_EQ(launch("unwatched", served()).exit_code, 0);
  expect_the_undisturbed_result("unwatched");
}

// The workers hear nothing from the launcher any more, save, and end, and the servers with them.
TEST_F(LaunchServedTest, WorkersSaveWhenTheLauncherIsKilled) {
  Process process(command("orphaned", served(), {"checkpoint.every_steps=100000"}), environment());
  const pid_t rank = wait_for_rank(process, "orphaned", 1, 25);
  const std::vector<pid_t> servers = servers_of(process);
  process.send(SIGKILL);
  process.wait();
  expect_end(rank);
  ASSERT_EQ(servers.size(), 1U);
  expect_end(servers[0]);
  EXPECT_GE(job_->result("orphaned").step, 25);
  EXPECT_EQ(launch("orphaned", served()).exit_code, 0);
  expect_the_undisturbed_result("orphaned");
}

TEST_F(LaunchServedTest, DoesNotRepeatWhatWouldFailAgain) {
  const ProcessResult refused = launch("refused", served(), {"data.train=" + (job_->folder() / "no").string()});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, Not(HasSubstr("again (")));
  EXPECT_FALSE(fs::exists(folder_of("refused")));
  expect_nothing_left();
}

TEST_F(LaunchServedTest, AServerThatIsRefusedEndsTheJob) {
  const ProcessResult refused =
      launch("refused", served({"--tls-cert", "no.pem", "--tls-key", "no.pem"}), {"comm.tls_ca=no.pem"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("launch: server 1 ended with exit code 2: lockstep serve: "));
  expect_nothing_left();
}

TEST_F(LaunchServedTest, EndsWhenThereAreNoRestartsLeft) {
  Process process(command("once", served({"--max-restarts", "0"})), environment());
  kill(wait_for_rank(process, "once", 1, 5), SIGKILL);
  const ProcessResult result = process.wait(60);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("--max-restarts allows no more"));
  EXPECT_EQ(status("once")["state"], "failed");
}

// Of one worker the weights are those of a run without servers.
TEST_F(LaunchServedTest, StartsServersOfTheModeThatIsConfigured) {
  const Words bounded = {"comm.mode=bounded"};
  EXPECT_THAT(launch("dry", served({"--dry-run"}), bounded).out, HasSubstr(" --port 0 --mode bounded\n"));
  const ProcessResult result = launch("bounded", {"--backend", "server", "--ranks", "1"}, bounded);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  expect_the_undisturbed_result("bounded");
}

TEST_F(LaunchServedTest, PrintsItsCommandsInADryRun) {
  const ProcessResult here = launch("dry", served({"--dry-run"}));
  EXPECT_EQ(here.exit_code, 0) << here.err;
  EXPECT_THAT(here.out, AllOf(StartsWith(std::string(LOCKSTEP_PROGRAM) +
                                         " serve --workers 2 --part 1/1 --listen 127.0.0.1 --port 0\n"
                                         "LOCKSTEP_RANK=0 LOCKSTEP_WORLD_SIZE=2 " +
                                         LOCKSTEP_PROGRAM + " train "),
                              HasSubstr("\nLOCKSTEP_RANK=1 LOCKSTEP_WORLD_SIZE=2 "),
                              HasSubstr(" --set comm.servers=127.0.0.1:PORT --resume auto\n"), Not(HasSubstr("mpi"))));
  // The configuration may say it, too.
  const ProcessResult there = launch("dry", {"--hosts", "a,b", "--dry-run"}, {"comm.backend=server"});
  EXPECT_THAT(there.out, AllOf(StartsWith("ssh -o BatchMode=yes "), HasSubstr(" a 'sh -c "), HasSubstr(" b 'sh -c "),
                               HasSubstr(" --listen 0.0.0.0 "), HasSubstr(" --set comm.servers=a:PORT ")));
  const ProcessResult batch =
      launch("dry", {"--backend", "server", "--servers", "3", "--slurm", "--nodes", "4", "--dry-run"});
  EXPECT_THAT(batch.out, AllOf(StartsWith("#!/bin/bash\n"), HasSubstr(" --set comm.backend=server "),
                               HasSubstr(" --servers 3\n")));
  EXPECT_FALSE(fs::exists(folder_of("dry")));
}

TEST_F(LaunchServedTest, RefusesWhatItCannotStart) {
  const auto refusal = [&](const Words& options, const Words& settings = {}) {
    const ProcessResult result = launch("refused", options, settings);
    EXPECT_EQ(result.exit_code, 2) << result.err;
    return result.err;
  };
  EXPECT_THAT(refusal({"--servers", "2"}), HasSubstr("--servers 2: comm.backend is auto, which has none"));
  EXPECT_THAT(refusal(served({"--servers", "0"})), HasSubstr("--servers"));
  EXPECT_THAT(refusal(served({"--starter", "mpirun"})), HasSubstr("--starter mpirun: with comm.backend: server each"));
  EXPECT_THAT(refusal(served(), {"comm.servers=a:7070"}),
              HasSubstr("comm.servers: found a:7070, expected nothing: lockstep launch starts the servers itself"));
  EXPECT_THAT(refusal(served({"--tls-cert", "a.pem", "--tls-key", "b.pem"})),
              HasSubstr("--tls-cert and comm.tls_ca: found only one of them"));
  EXPECT_THAT(refusal({"--backend", "tcp"}), HasSubstr("tcp"));
  EXPECT_THAT(refusal({"--backend", "server", "--ranks", "3"}), HasSubstr("expected a power of two"));
  EXPECT_THAT(refusal({"--backend", "server", "--hosts", "nowhere", "--ssh", "/bin/false"}),
              HasSubstr("host nowhere cannot be used: /bin/false ended with exit code 1"));
  EXPECT_FALSE(fs::exists(folder_of("refused")));
}

}  // namespace
}  // namespace lockstep
