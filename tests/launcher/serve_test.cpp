// lockstep serve and its workers as people run them: what is refused, how a job stops, and what a lost process does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "tests/support/certificates.h"
#include "tests/support/training_job.h"

namespace lockstep {
namespace {

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
  static TrainingJob::ServedRun running(const std::string& name, int servers, TrainingJob::Ranks ranks) {
    TrainingJob::ServedRun run = job_->start_with_servers({name, 2, {"train.steps=1000000"}}, servers, ranks);
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
  EXPECT_EQ(refusal({"serve", "--workers", "1", "--part", "3/2"}),
            "lockstep serve: --part: found 3/2, expected I/K, the I-th of K servers, for example 1/2\n");
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
  EXPECT_THAT(refusal({}, {"LOCKSTEP_RANK=0", "LOCKSTEP_WORLD_SIZE=2"}),
              HasSubstr("LOCKSTEP_RANK gives this worker a rank, which only comm.backend: server takes; found auto"));
}

TEST_F(ServeTest, TlsChangesNoBit) {
  EXPECT_EQ(job_->train({.name = "plain"}).exit_code, 0);
  const CertificateFiles files = make_certificate(job_->folder(), "server");
  const TrainingJob::ServedRun run =
      job_->start_with_servers({.name = "encrypted",
                                .ranks = 2,
                                .settings = {"comm.tls_ca=" + files.certificate.string()},
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

TEST_F(ServeTest, AKilledWorkerEndsTheJobAndIsNamed) {
  TrainingJob::ServedRun run = running("killed", 2, TrainingJob::Ranks::kByHand);
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

TEST_F(ServeTest, AKilledServerEndsTheJobAndIsNamed) {
  TrainingJob::ServedRun run = running("unserved", 2, TrainingJob::Ranks::kByArrival);
  const std::string address = run.servers[1]->out();
  run.servers[1]->send(SIGKILL);
  for (const std::unique_ptr<Process>& worker : run.workers) {
    const ProcessResult result = worker->wait();
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, HasSubstr("the parameter server " + address.substr(0, address.find('\n')) + " is lost"));
  }
  EXPECT_EQ(run.servers[0]->wait().exit_code, 1);
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
