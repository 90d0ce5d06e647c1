// Where a job's coordinator can be reached: passed to workers in their environment, and left in the run's folder for
// `lockstep status`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "comm/control/client.h"
#include "comm/rank_environment.h"

namespace lockstep {

struct Contact {
  control::CoordinatorAddress address;
  int attempt = 1;
  std::string slurm_job = {};  // as SlurmJob::id, empty outside of Slurm
};

inline constexpr const char* kContactVariable = "LOCKSTEP_COORDINATOR";

// "ATTEMPT/TOKEN/PORT/ADDRESS,ADDRESS/JOB": what `lockstep launch` puts into kContactVariable.
[[nodiscard]] std::string to_text(const Contact& contact);
// Nothing where nobody coordinates yet. Throws Error(kUsage) for a variable that is not of that form.
[[nodiscard]] std::optional<Contact> contact_from(const EnvironmentLookup& environment);

// RUN/coordinator.json, readable by its owner alone: it holds the job's token.
[[nodiscard]] std::filesystem::path contact_file(const std::filesystem::path& run);
// Throws Error(kIo, kNoSpace).
void write_contact_file(const std::filesystem::path& run, const Contact& contact);
// Nothing when there is none, or one that is being written or cannot be read.
[[nodiscard]] std::optional<Contact> read_contact_file(const std::filesystem::path& run);

// This machine's IPv4 addresses but for the loopback ones; the loopback one where there is no other.
[[nodiscard]] std::vector<std::string> own_addresses();

}  // namespace lockstep
