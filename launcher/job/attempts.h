// RUN/attempts.jsonl: a line for each start of a job by `lockstep launch`, written when it has ended, and one for each
// process that was started again by itself within one, written when the job got on. A job that was refused before it
// opened the run leaves none.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launcher/job/slurm.h"

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

struct Replacement {
  int attempt = 1;
  std::string time = {};     // of its start, UTC
  std::string process = {};  // "rank 3", "server 1"
  std::string host = {};     // empty: that of lockstep launch
  std::int64_t step = 0;     // completed until then
  std::string cause = {};    // what had happened to the one before
  double detected_s = 0;     // as above
  double recovered_s = 0;    // until a step was done; 0: none was before the attempt ended, or another was replaced
};

[[nodiscard]] std::filesystem::path attempts_file(const std::filesystem::path& run);
[[nodiscard]] nlohmann::ordered_json to_json(const Attempt& attempt);
[[nodiscard]] nlohmann::ordered_json to_json(const Replacement& replacement);
// Both append. They return why they could not, empty when they did.
[[nodiscard]] std::string append_attempt(const std::filesystem::path& run, const Attempt& attempt);
[[nodiscard]] std::string append_replacement(const std::filesystem::path& run, const Replacement& replacement);
// All whole lines; none when there is no file.
[[nodiscard]] std::vector<Attempt> read_attempts(const std::filesystem::path& run);
[[nodiscard]] std::vector<Replacement> read_replacements(const std::filesystem::path& run);

// Whether this Slurm job has worked on the run before it was put back into the queue. Its script says --resume none or
// DIR once more, which was meant for its first start, and names a configuration that may have been edited since.
[[nodiscard]] bool opened_before(const std::optional<SlurmJob>& job, const std::filesystem::path& run);

// The time now as above.
[[nodiscard]] std::string utc_now();

}  // namespace lockstep
