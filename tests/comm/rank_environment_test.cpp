#include "comm/rank_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/error.h"

namespace lockstep {
namespace {

using Variables = std::map<std::string, std::string>;

RankEnvironment detect(const Variables& variables) {
  return detect_rank_environment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::optional<std::string>{} : found->second;
  });
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    return error.what();
  }
  return "not refused";
}

// What slurmstepd sets in the script of `sbatch -n 4` (Slurm 23.11): also a rank, but no step.
const Variables kBatchScript = {{"SLURM_JOB_ID", "71"}, {"SLURM_NTASKS", "4"},  {"SLURM_NPROCS", "4"},
                                {"SLURM_PROCID", "0"},  {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"}};

Variables with(Variables base, const Variables& more) {
  base.insert(more.begin(), more.end());
  return base;
}

const Variables kStepTask2Of4 = {{"SLURM_JOB_ID", "71"},
                                 {"SLURM_STEP_ID", "0"},
                                 {"SLURM_STEP_NUM_TASKS", "4"},
                                 {"SLURM_NTASKS", "4"},
                                 {"SLURM_PROCID", "2"}};

TEST(RankEnvironmentTest, IsAloneInAShell) {
  EXPECT_EQ(detect({}), (RankEnvironment{Starter::kAlone, 0, 1}));
  EXPECT_EQ(detect({{"HOME", "/root"}}), (RankEnvironment{Starter::kAlone, 0, 1}));
}

TEST(RankEnvironmentTest, ReadsTheRankThatMpirunGave) {
  EXPECT_EQ(detect({{"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_SIZE", "8"}}),
            (RankEnvironment{Starter::kMpirun, 3, 8}));
}

TEST(RankEnvironmentTest, ReadsTheRankThatAnotherMpiexecGave) {
  EXPECT_EQ(detect({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}), (RankEnvironment{Starter::kMpirun, 1, 2}));
}

TEST(RankEnvironmentTest, LeavesTheSizeToMpiWhereOnlyPmixIsThere) {
  EXPECT_EQ(detect({{"PMIX_RANK", "5"}}), (RankEnvironment{Starter::kMpirun, 5, 0}));
}

TEST(RankEnvironmentTest, TakesTheRankThatWasGivenByHandBeforeALaunchers) {
  EXPECT_EQ(detect({{"LOCKSTEP_RANK", "2"}, {"LOCKSTEP_WORLD_SIZE", "3"}, {"PMIX_RANK", "0"}}),
            (RankEnvironment{Starter::kByHand, 2, 3}));
  EXPECT_EQ(refusal([] {
              (void)detect({{"LOCKSTEP_RANK", "2"}});
            }),
            "start: LOCKSTEP_RANK is 2 and LOCKSTEP_WORLD_SIZE is not set, expected two numbers");
  EXPECT_EQ(refusal([] {
              (void)detect({{"LOCKSTEP_RANK", "x"}, {"LOCKSTEP_WORLD_SIZE", "3"}});
            }),
            "start: LOCKSTEP_RANK is x and LOCKSTEP_WORLD_SIZE is 3, expected two numbers");
  EXPECT_EQ(refusal([] {
              (void)detect({{"LOCKSTEP_RANK", "3"}, {"LOCKSTEP_WORLD_SIZE", "3"}});
            }),
            "start: the environment says LOCKSTEP_RANK=3 and LOCKSTEP_WORLD_SIZE=3, expected a rank below the number "
            "of ranks");
}

TEST(RankEnvironmentTest, IsAloneInABatchScript) { EXPECT_EQ(detect(kBatchScript).starter, Starter::kAlone); }

TEST(RankEnvironmentTest, IsAloneInTheInteractiveShellOfSalloc) {
  EXPECT_EQ(detect(with(kBatchScript, {{"SLURM_STEP_ID", "4294967290"}, {"SLURM_STEP_NUM_TASKS", "1"}})).starter,
            Starter::kAlone);
}

TEST(RankEnvironmentTest, TakesMpirunInABatchScriptForMpirun) {
  EXPECT_EQ(detect(with(kBatchScript, {{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "4"}})),
            (RankEnvironment{Starter::kMpirun, 1, 4}));
}

TEST(RankEnvironmentTest, TakesMpirunForMpirunWhereSrunStartedItsDaemons) {
  EXPECT_EQ(detect(with(kStepTask2Of4, {{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "16"}})),
            (RankEnvironment{Starter::kMpirun, 1, 16}));
}

TEST(RankEnvironmentTest, ReadsTheTaskOfSrunWithPmix) {
  EXPECT_EQ(detect(with(kStepTask2Of4, {{"PMIX_RANK", "2"}})), (RankEnvironment{Starter::kSrun, 2, 4}));
}

TEST(RankEnvironmentTest, AcceptsOneTaskOfSrunWithoutPmix) {
  EXPECT_EQ(
      detect({{"SLURM_STEP_ID", "3"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}}),
      (RankEnvironment{Starter::kSrun, 0, 1}));
}

TEST(RankEnvironmentTest, RefusesTasksOfSrunWithoutPmix) {
  EXPECT_THAT(refusal([] { detect(kStepTask2Of4); }),
              testing::AllOf(testing::HasSubstr("srun started 4 tasks"), testing::HasSubstr("srun --mpi=pmix")));
}

TEST(RankEnvironmentTest, RefusesARankBeyondTheNumberOfRanks) {
  EXPECT_EQ(refusal([] {
              detect({{"OMPI_COMM_WORLD_RANK", "4"}, {"OMPI_COMM_WORLD_SIZE", "4"}});
            }),
            "start: the environment says OMPI_COMM_WORLD_RANK=4 and OMPI_COMM_WORLD_SIZE=4, expected a rank below the "
            "number of ranks");
}

TEST(RankEnvironmentTest, IgnoresVariablesThatAreNoNumbers) {
  EXPECT_EQ(detect({{"OMPI_COMM_WORLD_RANK", "x"}, {"OMPI_COMM_WORLD_SIZE", ""}}).starter, Starter::kAlone);
  EXPECT_EQ(detect({{"SLURM_STEP_ID", "1 "}, {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_PROCID", "0"}}).starter,
            Starter::kAlone);
}

TEST(CheckMpiWorldSizeTest, AcceptsWhatWasStarted) {
  check_mpi_world_size({Starter::kMpirun, 1, 4}, 4);
  check_mpi_world_size({Starter::kMpirun, 1, 0}, 4);
  check_mpi_world_size({Starter::kAlone, 0, 1}, 1);
}

TEST(CheckMpiWorldSizeTest, RefusesSinglesUnderSrun) {
  EXPECT_THAT(refusal([] {
                check_mpi_world_size({Starter::kSrun, 0, 4}, 1);
              }),
              testing::HasSubstr("srun started 4 tasks, but MPI sees 1 rank(s)"));
}

TEST(CheckMpiWorldSizeTest, RefusesSinglesUnderAForeignLauncher) {
  EXPECT_THAT(refusal([] {
                check_mpi_world_size({Starter::kMpirun, 0, 4}, 1);
              }),
              testing::HasSubstr("the launcher started 4 ranks, but MPI sees 1 rank(s)"));
}

}  // namespace
}  // namespace lockstep
