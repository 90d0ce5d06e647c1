// A small training job as people run it: a packed dataset, a configuration, mpirun, and what it leaves.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/support/process.h"
#include "tests/support/temporary_folder.h"

namespace lockstep {

// Names of the programs under test.
struct Programs {
  std::string lockstep;
  std::string mpirun;  // tests/support/mpirun.sh
};

class TrainingJob {
 public:
  // Writes a text, packs it with the tokenizer "bytes", and writes a configuration of a model that trains in a second
  // or two. Throws std::runtime_error with what the program said when packing fails.
  explicit TrainingJob(Programs programs);

  [[nodiscard]] std::filesystem::path folder() const { return folder_.path(); }
  // Packs conversations of many lengths, with the tokenizer "bytes", and returns the settings of a run on them. Throws
  // as the constructor does.
  [[nodiscard]] std::vector<std::string> pack_conversations() const;
  [[nodiscard]] std::filesystem::path checkpoints(const std::string& run) const;

  // The command that trains run `run` on so many ranks; `settings` are KEY=VALUE, `options` further flags.
  struct Run {
    std::string name;
    int ranks = 1;
    std::vector<std::string> settings = {};
    std::vector<std::string> options = {};
    std::vector<std::string> serve_options = {};  // of `lockstep serve`
    int parts_a_server = 1;                       // which then cannot be started again
  };
  [[nodiscard]] std::vector<std::string> command(const Run& run) const;
  [[nodiscard]] ProcessResult train(const Run& run) const;
  // The same without MPI, through parameter servers: `lockstep serve` for each part, and a worker for each rank.
  struct ServedRun {
    // What a process was started with, but for the servers' port: they get the one back that they had.
    struct Start {
      std::vector<std::string> words;
      std::vector<std::string> environment;
      [[nodiscard]] std::unique_ptr<Process> again() const { return std::make_unique<Process>(words, environment); }
    };
    std::vector<Start> server_starts;
    std::vector<Start> worker_starts;
    std::vector<std::unique_ptr<Process>> servers;
    std::vector<std::unique_ptr<Process>> workers;
  };
  enum class Ranks { kByArrival, kByHand };
  [[nodiscard]] ServedRun start_with_servers(const Run& run, int servers, Ranks ranks = Ranks::kByArrival) const;

  // The digest of the run's newest checkpoint as `lockstep inspect --verify` prints it, and its step. Throws
  // std::runtime_error when there is none or it does not verify.
  struct Result {
    std::string digest;
    int step = 0;
    friend bool operator==(const Result&, const Result&) = default;
  };
  [[nodiscard]] Result result(const std::string& run) const;
  // That of every checkpoint that was kept, oldest first.
  [[nodiscard]] std::vector<Result> results(const std::string& run) const;

  // What metrics.jsonl says of the training itself, a line each: everything but times and the number of ranks.
  [[nodiscard]] std::vector<std::string> curve(const std::string& run) const;

 private:
  Programs programs_;
  TemporaryFolder folder_;
};

}  // namespace lockstep
