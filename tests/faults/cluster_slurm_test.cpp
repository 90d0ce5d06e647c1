// Slurm's time limits, preemptions, cancellations and lost nodes. Every case ends with the weights and the loss curve
// of a run that nobody disturbed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
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
