#include "launcher/job/attempts.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>

#include "base/error.h"
#include "base/file.h"

namespace lockstep {

using nlohmann::json;

std::filesystem::path attempts_file(const std::filesystem::path& run) { return run / "attempts.jsonl"; }

nlohmann::ordered_json to_json(const Attempt& attempt) {
  return {{"attempt", attempt.number},
          {"started", attempt.started},
          {"ended", attempt.ended},
          {"ranks", attempt.ranks},
          {"hosts", attempt.hosts},
          {"slurm_job", attempt.slurm_job},
          {"opened", attempt.opened},
          {"first_step", attempt.first_step},
          {"last_step", attempt.last_step},
          {"exit_code", attempt.exit_code},
          {"cause", attempt.cause},
          {"detected_s", attempt.detected_s},
          {"recovered_s", attempt.recovered_s}};
}

std::string append_attempt(const std::filesystem::path& run, const Attempt& attempt) {
  std::error_code error;
  if (!std::filesystem::is_directory(run, error)) {
    return {};  // a job that was refused before it had a folder
  }
  const std::string line = to_json(attempt).dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  try {
    const File file = File::open_or_create(attempts_file(run));
    const std::uint64_t size = file.size();
    std::byte last{'\n'};
    if (size > 0) {
      file.read_exactly(size - 1, std::span(&last, 1));
    }
    // A line that a full disk has cut short stays one of its own.
    const std::string text = (last == std::byte{'\n'} ? "" : "\n") + line;
    file.write(size, std::as_bytes(std::span(text)));
  } catch (const Error& problem) {
    return problem.what();
  }
  return {};
}

std::vector<Attempt> read_attempts(const std::filesystem::path& run) {
  std::vector<Attempt> attempts;
  std::ifstream file(attempts_file(run));
  for (std::string line; std::getline(file, line);) {
    const json object = json::parse(line, nullptr, false);
    try {
      Attempt attempt;
      object.at("attempt").get_to(attempt.number);
      object.at("started").get_to(attempt.started);
      object.at("ended").get_to(attempt.ended);
      object.at("ranks").get_to(attempt.ranks);
      object.at("hosts").get_to(attempt.hosts);
      object.at("slurm_job").get_to(attempt.slurm_job);
      object.at("opened").get_to(attempt.opened);
      object.at("first_step").get_to(attempt.first_step);
      object.at("last_step").get_to(attempt.last_step);
      object.at("exit_code").get_to(attempt.exit_code);
      object.at("cause").get_to(attempt.cause);
      object.at("detected_s").get_to(attempt.detected_s);
      object.at("recovered_s").get_to(attempt.recovered_s);
      attempts.push_back(std::move(attempt));
    } catch (const json::exception&) {
      continue;  // cut short by a full disk
    }
  }
  return attempts;
}

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())));
}

}  // namespace lockstep
