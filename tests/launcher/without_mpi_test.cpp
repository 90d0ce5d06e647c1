// The program on a machine without MPI: whatever library MPI brings there stands an empty file in its place, which the
// loader takes first and cannot open.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "tests/support/training_job.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::StartsWith;
using Words = std::vector<std::string>;

// The names of the libraries that the loader opens for `file`, of libraries of libraries too.
std::set<std::string> libraries_of(const std::string& file) {
  std::set<std::string> names;
  std::istringstream lines(run_process({"ldd", file}).out);
  for (std::string line; std::getline(lines, line);) {
    std::string name;
    std::istringstream(line) >> name;
    names.insert(std::filesystem::path(name).filename());
  }
  return names;
}

class WithoutMpiTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::set<std::string> needed = libraries_of(LOCKSTEP_PROGRAM);
    const std::set<std::string> with_mpi = libraries_of(LOCKSTEP_MPI_MODULE);
    std::set_difference(with_mpi.begin(), with_mpi.end(), needed.begin(), needed.end(),
                        std::back_inserter(hidden_libraries_));
    hidden_ = new TemporaryFolder;
    for (const std::string& name : hidden_libraries_) {
      std::ofstream{*hidden_ / name};
    }
    const char* const folders = std::getenv("LD_LIBRARY_PATH");
    former_folders_ = folders == nullptr ? "" : folders;
    ::setenv("LD_LIBRARY_PATH", (hidden_->path().string() + ":" + former_folders_).c_str(), 1);
    job_ = new TrainingJob({LOCKSTEP_PROGRAM, LOCKSTEP_MPIRUN});  // which runs `lockstep pack`
  }
  static void TearDownTestSuite() {
    delete job_;
    delete hidden_;
    ::setenv("LD_LIBRARY_PATH", former_folders_.c_str(), 1);
  }

  // One worker that nobody but the test starts.
  static ProcessResult train(const std::string& run, Words options, const Words& environment = {}) {
    const Words with_mpirun = job_->command({run});
    Words command(with_mpirun.begin() + 2, with_mpirun.end());
    command.insert(command.end(), options.begin(), options.end());
    return run_process(command, environment);
  }
  static std::string run_folder(const std::string& run) { return (job_->folder() / "runs" / run).string(); }

  static inline Words hidden_libraries_;
  static inline std::string former_folders_;
  static inline TemporaryFolder* hidden_ = nullptr;
  static inline TrainingJob* job_ = nullptr;
};

TEST_F(WithoutMpiTest, TheProgramNeedsNoLibraryOfMpi) {
  EXPECT_THAT(libraries_of(LOCKSTEP_PROGRAM), testing::Not(Contains(StartsWith("libmpi"))));
  EXPECT_THAT(hidden_libraries_, Contains(StartsWith("libmpi")));
}

TEST_F(WithoutMpiTest, WorkersOfParameterServersTrainWithTheBitsOfOneAlone) {
  const ProcessResult alone = train("alone", {});
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  TrainingJob::ServedRun run = job_->start_with_servers({"served", 2}, 2);
  for (const auto& processes : {&run.workers, &run.servers}) {
    for (const std::unique_ptr<Process>& process : *processes) {
      const ProcessResult result = process->wait();
      EXPECT_EQ(result.exit_code, 0) << result.err;
    }
  }
  EXPECT_EQ(job_->result("served"), job_->result("alone"));
  EXPECT_EQ(job_->result("served").step, 24);
}

TEST_F(WithoutMpiTest, EveryCommandWorks) {
  const ProcessResult trained = train("self", {"--set", "comm.backend=self", "--set", "train.steps=6"});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const std::string run = run_folder("self");
  const std::string gguf = (job_->folder() / "self.gguf").string();
  for (const Words& arguments : std::vector<Words>{
           {"--version"},
           {"bench", "loader", job_->folder() / "job.yaml", "--rounds", "1"},
           {"devices"},
           {"eval", "--model", run, "--data", job_->folder() / "data" / "valid"},
           {"export", "--model", run, "--to", "gguf", "--type", "f32", "--out", gguf},
           {"generate", "--model", run, "--prompt", "w1", "--max-tokens", "4"},
           {"inspect", run},
           {"verify", run, gguf},
       }) {
    Words command = {LOCKSTEP_PROGRAM};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const ProcessResult result = run_process(command);
    EXPECT_EQ(result.exit_code, 0) << arguments[0] << ": " << result.err;
  }
}

TEST_F(WithoutMpiTest, TheMpiBackendSaysWhatIsMissing) {
  const auto matches =
      AllOf(HasSubstr(std::string("comm.backend: mpi: ") + LOCKSTEP_MPI_MODULE + " cannot be opened: "),
            HasSubstr("libmpi"), HasSubstr("; install the MPI that this program was built with"));
  const ProcessResult asked = train("refused", {"--set", "comm.backend=mpi"});
  EXPECT_EQ(asked.exit_code, 2);
  EXPECT_THAT(asked.err, matches);
  EXPECT_EQ(std::count(asked.err.begin(), asked.err.end(), '\n'), 1) << asked.err;

  const ProcessResult started = train("refused", {}, {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2"});
  EXPECT_EQ(started.exit_code, 2);
  EXPECT_THAT(started.err, matches);
  EXPECT_FALSE(std::filesystem::exists(run_folder("refused")));
}

}  // namespace
}  // namespace lockstep
