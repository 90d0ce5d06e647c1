// RUN/attempts.jsonl: a line for each start of a job by `lockstep launch`, written when it has ended.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace lockstep {

struct Attempt {
  int number = 1;
  std::string started = {};  // UTC, "2026-11-26T07:03:11Z"
  std::string ended = {};
  int ranks = 0;
  std::vector<std::string> hosts = {};
  std::string slurm_job = {};   // as SlurmJob::id, empty outside of Slurm
  bool opened = false;          // the run was, so that --resume of the first start has been carried out
  std::int64_t first_step = 0;  // completed when it began
  std::int64_t last_step = 0;   // completed when it ended
  int exit_code = 0;
  std::string cause = {};  // why it ended, empty when the run was finished
  double detected_s = 0;   // from the last sign of life of what failed to its being noticed; 0: nothing failed
  double recovered_s = 0;  // from the end of the attempt before, as noticed, to this one's first step; 0: the first
};

[[nodiscard]] std::filesystem::path attempts_file(const std::filesystem::path& run);
[[nodiscard]] nlohmann::ordered_json to_json(const Attempt& attempt);
// Appends. Returns why it could not, empty when it did.
[[nodiscard]] std::string append_attempt(const std::filesystem::path& run, const Attempt& attempt);
// All whole lines; none when there is no file.
[[nodiscard]] std::vector<Attempt> read_attempts(const std::filesystem::path& run);

// The time now as above.
[[nodiscard]] std::string utc_now();

}  // namespace lockstep
