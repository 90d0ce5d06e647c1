// lockstep serve and its workers as people run them: what is refused, how a job stops, and what a lost process does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "tests/support/certificates.h"
#include "tests/support/training_job.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::HasSubstr;
using Words = std::vector<std::string>;

class ServeTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN}); }
  static void TearDownTestSuite() {
    delete job_;
    job_ = nullptr;
  }

  // With a token of the test's own.
  static ProcessResult lockstep(const Words& arguments, Words environment = {}) {
    Words command = {LOCKSTEP_PROGRAM};
    command.insert(command.end(), arguments.begin(), arguments.end());
    environment.push_back("LOCKSTEP_TOKEN_FILE=" + (job_->folder() / "token").string());
    return run_process(command, environment);
  }
  // A run that does not end by itself, once its first steps are done.
  static TrainingJob::ServedRun running(const std::string& name, int servers, TrainingJob::Ranks ranks,
                                        Words settings = {}, const Words& serve_options = {}) {
    settings.push_back("train.steps=1000000");
    TrainingJob::ServedRun run = job_->start_with_servers({name, 2, settings, {}, serve_options}, servers, ranks);
    for (int tries = 0; tries < 2000 && !std::filesystem::exists(job_->checkpoints(name) / "step-00000006"); ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_TRUE(run.workers[0]->is_running()) << run.workers[0]->err();
    return run;
  }

  static TrainingJob* job_;
};
TrainingJob* ServeTest::job_ = nullptr;

TEST_F(ServeTest, RefusesWhatMakesNoSense) {
  const auto refusal = [](const Words& arguments) {
    const ProcessResult result = lockstep(arguments);
    EXPECT_EQ(result.exit_code, 2);
    return result.err;
  };
  EXPECT_EQ(refusal({"serve"}), "lockstep serve: --workers is required\n");
  EXPECT_EQ(
      refusal({"serve", "--workers", "1", "--part", "3/2"}),
      "lockstep serve: --part: found 3/2, expected I/K, the I-th of K servers, for example 1/2, or I-J/K, several in "
      "one\n");
  for (const char* part : {"0/1", "2-1/2", "1-3/2", "1-/2", "-1/2", "1", "1/", "1-2", "1/2/3", "x/2", "1/2-3"}) {
    EXPECT_THAT(refusal({"serve", "--workers", "1", "--part", part}), HasSubstr("--part: found ")) << part;
  }
  EXPECT_THAT(refusal({"serve", "--workers", "1", "--part", "1-3/3", "--port", "65534"}),
              HasSubstr("--port: found 65534, but --part 1-3/3 needs one for each part"));
  EXPECT_THAT(refusal({"serve", "--workers", "1", "--part", "1-2/2", "--mode", "async"}),
              HasSubstr("several parts in one process are for --mode sync"));
  EXPECT_THAT(refusal({"serve", "--workers", "1", "--port", "70000"}), HasSubstr("70000"));
  EXPECT_EQ(refusal({"serve", "--workers", "1", "--port", "0", "--listen", "nowhere"}),
            "lockstep serve: server: nowhere is no numeric address to listen on\n");
}

TEST_F(ServeTest, WorkersSayWhatTheyMiss) {
  const auto refusal = [](const Words& settings, const Words& environment = {}) {
    Words words = {"train", (job_->folder() / "job.yaml").string(), "--set", "run.name=refused"};
    for (const std::string& setting : settings) {
      words.insert(words.end(), {"--set", setting});
    }
    const ProcessResult result = lockstep(words, environment);
    EXPECT_EQ(result.exit_code, 2);
    return result.err;
  };
  EXPECT_THAT(refusal({"comm.backend=server"}), HasSubstr("comm.servers is empty"));
  std::filesystem::remove(job_->folder() / "token");
  EXPECT_THAT(refusal({"comm.backend=server", "comm.servers=127.0.0.1:1"}),
              HasSubstr("`lockstep serve` makes one, to be copied to the workers"));
  EXPECT_THAT(refusal({"comm.wire=bf16"}),
              HasSubstr("comm.wire: found bf16, which only comm.backend: server has; with auto gradients are exchanged "
                        "as fp32"));
  EXPECT_THAT(refusal({"comm.backend=server", "comm.servers=127.0.0.1:1", "comm.mode=async", "comm.wire=int8"}),
              HasSubstr("comm.mode is async, in which everything travels as fp32; found comm.wire int8"));
  EXPECT_THAT(refusal({}, {"LOCKSTEP_RANK=0", "LOCKSTEP_WORLD_SIZE=2"}),
              HasSubstr("LOCKSTEP_RANK gives this worker a rank, which only comm.backend: server takes; found auto"));
}

TEST_F(ServeTest, TlsChangesNoBit) {
  EXPECT_EQ(job_->train({.name = "plain"}).exit_code, 0);
  const CertificateFiles files = make_certificate(job_->folder(), "server");
  const TrainingJob::ServedRun run =
      job_->start_with_servers({.name = "encrypted",
                                .ranks = 2,
                                // So that the gradients travel.
                                .settings = {"comm.tls_ca=" + files.certificate.string(), "comm.shared_memory=false"},
                                .serve_options = {"--tls-cert", files.certificate, "--tls-key", files.key}},
                               1);
  for (const auto* const processes : {&run.servers, &run.workers}) {
    for (const std::unique_ptr<Process>& process : *processes) {
      const ProcessResult result = process->wait();
      EXPECT_EQ(result.exit_code, 0) << result.err;
    }
  }
  EXPECT_EQ(job_->result("encrypted"), job_->result("plain"));
}

// The loss at the end of a run.
double valid_loss(const std::vector<std::string>& curve) {
  double loss = 0;
  for (const std::string& line : curve) {
    loss = nlohmann::json::parse(line).value("valid_loss", loss);
  }
  return loss;
}

TEST_F(ServeTest, RoundedGradientsTrainAboutAsWellAndTheSameEachTime) {
  const auto train = [](const std::string& name, const std::string& wire) {
    // Ranks by hand, since what a worker's rounding loses stays with it.
    const TrainingJob::ServedRun run = job_->start_with_servers(
        {.name = name, .ranks = 2, .settings = {"comm.wire=" + wire}}, 1, TrainingJob::Ranks::kByHand);
    for (const auto* const processes : {&run.servers, &run.workers}) {
      for (const std::unique_ptr<Process>& process : *processes) {
        const ProcessResult result = process->wait();
        EXPECT_EQ(result.exit_code, 0) << result.err;
      }
    }
    return valid_loss(job_->curve(name));
  };
  const double exact = train("fp32", "fp32");
  const double bf16 = train("bf16", "bf16");
  const double int8 = train("int8", "int8");
  EXPECT_LT(exact, 5.0);  // it has learned something: a guess is ln 257
  EXPECT_NEAR(bf16, exact, 0.01 * exact);
  EXPECT_NEAR(int8, exact, 0.01 * exact);
  EXPECT_NE(job_->result("bf16"), job_->result("fp32"));
  EXPECT_NE(job_->result("int8"), job_->result("fp32"));
  EXPECT_EQ(train("again", "int8"), int8);
  EXPECT_EQ(job_->result("again"), job_->result("int8"));
}

TEST_F(ServeTest, SeveralPartsInOneProcessChangeNoBit) {
  EXPECT_EQ(job_->train({.name = "whole"}).exit_code, 0);
  const TrainingJob::ServedRun run = job_->start_with_servers(
      {.name = "in-parts", .ranks = 2, .settings = {"comm.shared_memory=false"}, .parts_a_server = 2}, 2);
  EXPECT_EQ(run.servers.size(), 2U);
  for (const auto* const processes : {&run.servers, &run.workers}) {
    for (const std::unique_ptr<Process>& process : *processes) {
      const ProcessResult result = process->wait();
      EXPECT_EQ(result.exit_code, 0) << result.err;
    }
  }
  EXPECT_THAT(run.workers[0]->err() + run.workers[1]->err(), HasSubstr("sums by 4 parameter servers"));
  EXPECT_EQ(job_->result("in-parts"), job_->result("whole"));
}

TEST_F(ServeTest, OneWithoutTlsIsToldAtOnce) {
  const CertificateFiles files = make_certificate(job_->folder(), "server");
  const TrainingJob::ServedRun run = job_->start_with_servers(
      {.name = "told", .ranks = 1, .serve_options = {"--tls-cert", files.certificate, "--tls-key", files.key}}, 1);
  const ProcessResult worker = run.workers[0]->wait();
  EXPECT_EQ(worker.exit_code, 2);
  EXPECT_THAT(worker.err, HasSubstr("server: the parameter server takes TLS only, which comm.tls_ca turns on (127."));
  run.servers[0]->send(SIGTERM);
  EXPECT_EQ(run.servers[0]->wait().exit_code, 0);

  const std::filesystem::path none = job_->folder() / "none.pem";
  const auto refusal = [](const Words& arguments) {
    const ProcessResult result = lockstep(arguments);
    EXPECT_EQ(result.exit_code, 2);
    return result.err;
  };
  EXPECT_EQ(refusal({"serve", "--workers", "1", "--tls-cert", files.certificate}),
            "lockstep serve: --tls-cert requires --tls-key\n");
  EXPECT_EQ(refusal({"serve", "--workers", "1", "--tls-cert", files.certificate, "--tls-key", none}),
            "lockstep serve: server: cannot read " + none.string() + ": No such file or directory\n");
  EXPECT_THAT(refusal({"train", job_->folder() / "job.yaml", "--set", "comm.backend=server", "--set",
                       "comm.servers=127.0.0.1:1", "--set", "comm.tls_ca=" + none.string()}),
              HasSubstr("server: cannot read " + none.string() + ": No such file or directory\n"));
}

TEST_F(ServeTest, AStoppedJobEndsInOrderAndGoesOn) {
  TrainingJob::ServedRun run = running("stopped", 2, TrainingJob::Ranks::kByHand);
  run.workers[1]->send(SIGTERM);
  for (const std::unique_ptr<Process>& worker : run.workers) {
    const ProcessResult result = worker->wait();
    EXPECT_EQ(result.exit_code, 75) << result.err;
  }
  for (const std::unique_ptr<Process>& server : run.servers) {
    const ProcessResult result = server->wait();
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("serve: all workers have ended\n"));
  }
  EXPECT_GT(job_->result("stopped").step, 6);
}

// Where nobody is waited for.
TEST_F(ServeTest, AKilledWorkerEndsTheJobAndIsNamed) {
  TrainingJob::ServedRun run = running("killed", 2, TrainingJob::Ranks::kByHand, {}, {"--wait", "0"});
  run.workers[1]->send(SIGKILL);
  const ProcessResult other = run.workers[0]->wait();
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, HasSubstr("rank 1 "));
  for (const std::unique_ptr<Process>& server : run.servers) {
    const ProcessResult result = server->wait();
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr("lockstep serve: rank 1 (host "));
  }
}

TEST_F(ServeTest, AServerThatDoesNotComeBackEndsTheJobAndIsNamed) {
  TrainingJob::ServedRun run =
      running("unserved", 2, TrainingJob::Ranks::kByArrival, {"comm.timeout_s=2"}, {"--wait", "1"});
  const std::string address = run.server_starts[1].words[3];
  run.servers[1]->send(SIGKILL);
  for (const std::unique_ptr<Process>& worker : run.workers) {
    const ProcessResult result = worker->wait();
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr("warning: train: the parameter server 127.0.0.1:" + address + " is lost"));
    EXPECT_THAT(result.err, HasSubstr("lockstep train: "));
  }
  EXPECT_EQ(run.servers[0]->wait().exit_code, 1);
}

// A job that is disturbed, and ends with the bits of one that was not. Twice of each kind, rank 0 with what it writes
// among them.
class SurvivalTest : public ServeTest {
 protected:
  static constexpr int kSteps = 600;
  static Words settings(const Words& more = {}) {
    Words all = {"train.steps=" + std::to_string(kSteps), "checkpoint.every_steps=100", "evaluate.every_steps=150"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  // On one rank, without servers.
  static void SetUpTestSuite() {
    ServeTest::SetUpTestSuite();
    const ProcessResult result = job_->train({"undisturbed", 1, settings()});
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  static TrainingJob::ServedRun start(const std::string& name, int workers, const Words& more = {},
                                      const Words& serve_options = {},
                                      TrainingJob::Ranks ranks = TrainingJob::Ranks::kByHand) {
    return job_->start_with_servers({name, workers, settings(more), {}, serve_options}, 2, ranks);
  }
  // Until rank 0 has written so many lines of metrics.
  static void wait_for_line(TrainingJob::ServedRun& run, const std::string& name, std::size_t lines) {
    for (int tries = 0; tries < 12'000; ++tries) {
      std::ifstream file(job_->folder() / "runs" / name / "metrics.jsonl");
      const std::string text{std::istreambuf_iterator<char>(file), {}};
      if (static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) >= lines) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    ADD_FAILURE() << name << " has not got to line " << lines << ": " << run.workers[0]->err() << run.servers[0]->err();
  }
  static void expect_the_undisturbed_result(TrainingJob::ServedRun& run, const std::string& name) {
    for (const std::unique_ptr<Process>& worker : run.workers) {
      const ProcessResult result = worker->wait(120);
      EXPECT_EQ(result.exit_code, 0) << result.err;
    }
    for (const std::unique_ptr<Process>& server : run.servers) {
      const ProcessResult result = server->wait(20);
      EXPECT_EQ(result.exit_code, 0) << result.err;
    }
    EXPECT_EQ(job_->result(name), job_->result("undisturbed"));
    EXPECT_EQ(job_->curve(name), job_->curve("undisturbed"));
  }
};

TEST_F(SurvivalTest, KilledWorkersAreReplaced) {
  TrainingJob::ServedRun run = start("replaced", 4, {"comm.shared_memory=false"});
  std::size_t line = 30;
  for (const std::size_t rank : {1, 0, 3}) {
    wait_for_line(run, "replaced", line += 70);
    run.workers[rank]->send(SIGKILL);
    run.workers[rank]->wait();
    run.workers[rank] = run.worker_starts[rank].again();
  }
  expect_the_undisturbed_result(run, "replaced");
}

TEST_F(SurvivalTest, KilledServersComeBack) {
  TrainingJob::ServedRun run = start("served-again", 2, {}, {}, TrainingJob::Ranks::kByArrival);
  std::size_t line = 30;
  for (const std::size_t server : {0, 1, 0}) {
    wait_for_line(run, "served-again", line += 70);
    run.servers[server]->send(SIGKILL);
    run.servers[server]->wait();
    run.servers[server] = run.server_starts[server].again();
  }
  expect_the_undisturbed_result(run, "served-again");
}

// Nobody replaces the one that stands still; it comes back itself.
TEST_F(SurvivalTest, AStoppedWorkerIsDoneWithoutUntilItComesBack) {
  TrainingJob::ServedRun run = start("stopped", 2, {"comm.silence_s=1"});
  wait_for_line(run, "stopped", 100);
  run.workers[1]->send(SIGSTOP);
  for (int tries = 0; tries < 3'000 && run.servers[0]->err().find("has not answered") == std::string::npos; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_THAT(run.servers[0]->err(), ContainsRegex("serve: rank 1 \\(host .*\\) has not answered for 1\\."));
  run.workers[1]->send(SIGCONT);
  expect_the_undisturbed_result(run, "stopped");
}

// Where no rank has all moments, the checkpoint has.
TEST_F(SurvivalTest, ShardedStateComesFromTheCheckpoint) {
  TrainingJob::ServedRun run = start("sharded", 2, {"comm.zero=1"});
  wait_for_line(run, "sharded", 230);
  run.workers[1]->send(SIGKILL);
  run.workers[1]->wait();
  run.workers[1] = run.worker_starts[1].again();
  expect_the_undisturbed_result(run, "sharded");
}

// kill -9 and SIGSTOP at random moments, of workers and servers, whose sums travel in every other job and are made in
// shared memory in the rest. LOCKSTEP_KILLS=60 makes it a campaign.
TEST_F(SurvivalTest, SurvivesRandomKills) {
  const char* const wanted = std::getenv("LOCKSTEP_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 6;
  std::mt19937_64 random(11);
  const auto pick = [&](int below) { return static_cast<std::size_t>(random() % static_cast<std::uint64_t>(below)); };
  std::array<std::array<int, 2>, 2> done = {};  // workers and servers, killed and stopped
  for (int killed = 0, round = 0; killed < kills; ++round) {
    ASSERT_LT(round, kills + 20);
    const std::string name = "random-" + std::to_string(round);
    const std::string shares = round % 2 == 0 ? "true" : "false";
    TrainingJob::ServedRun run = start(name, 4, {"comm.silence_s=1", "comm.shared_memory=" + shares});
    std::size_t line = 0;
    while (killed < kills && line < 480) {
      wait_for_line(run, name, line += 20 + pick(100));
      std::this_thread::sleep_for(std::chrono::milliseconds(pick(30)));
      const bool of_server = pick(3) < 1;
      const bool stops = pick(10) < 3;
      const std::size_t whom = of_server ? pick(2) : pick(4);
      std::unique_ptr<Process>& process = of_server ? run.servers[whom] : run.workers[whom];
      if (!process->is_running()) {
        break;
      }
      process->send(stops ? SIGSTOP : SIGKILL);
      if (stops) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1'500));
        process->send(SIGCONT);
      } else {
        process->wait();
        process = of_server ? run.server_starts[whom].again() : run.worker_starts[whom].again();
      }
      ++done[of_server ? 1 : 0][stops ? 1 : 0];
      ++killed;
    }
    expect_the_undisturbed_result(run, name);
    if (HasFailure()) {
      return;
    }
  }
  std::printf("fault: %d workers and %d servers killed, %d and %d stopped for longer than comm.silence_s\n", done[0][0],
              done[1][0], done[0][1], done[1][1]);
}

TEST_F(SurvivalTest, FewerGoOnAndMoreAreTakenIn) {
  TrainingJob::ServedRun run =
      start("fewer", 4, {}, {"--min-workers", "1", "--wait", "1"}, TrainingJob::Ranks::kByArrival);
  wait_for_line(run, "fewer", 60);
  run.workers[2]->send(SIGKILL);
  run.workers[2]->wait();
  for (int tries = 0; tries < 3'000 && run.servers[0]->err().find("with 2 of 4 workers") == std::string::npos;
       ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  wait_for_line(run, "fewer", 200);
  run.workers[2] = run.worker_starts[2].again();
  expect_the_undisturbed_result(run, "fewer");
  EXPECT_THAT(run.servers[0]->err(),
              AllOf(HasSubstr("going on with 2 of 4 workers"), HasSubstr("all 4 workers are here")));
}

// They would be waited for longer than this test waits.
TEST_F(ServeTest, AServerWhoseWorkersAreGoneStopsAtOnce) {
  TrainingJob::ServedRun run = running("deserted", 1, TrainingJob::Ranks::kByHand);
  for (const std::unique_ptr<Process>& worker : run.workers) {
    worker->send(SIGKILL);
    (void)worker->wait();
  }
  run.servers[0]->send(SIGTERM);
  const ProcessResult server = run.servers[0]->wait(20);
  EXPECT_EQ(server.exit_code, 1);
  EXPECT_THAT(server.err, HasSubstr(" was stopped by a signal"));
}

TEST_F(ServeTest, AServerThatNobodyUsesStopsAtOnce) {
  Process server({LOCKSTEP_PROGRAM, "serve", "--workers", "1", "--port", "0"},
                 {"LOCKSTEP_TOKEN_FILE=" + (job_->folder() / "token").string()});
  for (int tries = 0; tries < 1000 && server.out().empty(); ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  server.send(SIGTERM);
  EXPECT_EQ(server.wait().exit_code, 0);
}

}  // namespace
}  // namespace lockstep
