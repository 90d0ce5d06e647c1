#include "launcher/job/attempts.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>

#include "base/error.h"
#include "base/file.h"
#include "launcher/job/contact.h"

namespace lockstep {

using nlohmann::json;

namespace {

std::string append(const std::filesystem::path& run, const nlohmann::ordered_json& object) {
  std::error_code error;
  if (!std::filesystem::is_directory(run, error)) {
    return {};  // a job that was refused before it had a folder
  }
  const std::string line = object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
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

template <typename Line>
std::vector<Line> read(const std::filesystem::path& run, void (*get)(const json&, Line&)) {
  std::vector<Line> lines;
  std::ifstream file(attempts_file(run));
  for (std::string text; std::getline(file, text);) {
    try {
      Line line;
      get(json::parse(text, nullptr, false), line);
      lines.push_back(std::move(line));
    } catch (const json::exception&) {
      continue;  // of the other kind, or cut short by a full disk
    }
  }
  return lines;
}

}  // namespace

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

nlohmann::ordered_json to_json(const Replacement& replacement) {
  return {{"attempt", replacement.attempt},
          {"replaced", replacement.process},
          {"time", replacement.time},
          {"host", replacement.host},
          {"step", replacement.step},
          {"cause", replacement.cause},
          {"detected_s", replacement.detected_s},
          {"recovered_s", replacement.recovered_s}};
}

std::string append_attempt(const std::filesystem::path& run, const Attempt& attempt) {
  return append(run, to_json(attempt));
}

std::string append_replacement(const std::filesystem::path& run, const Replacement& replacement) {
  return append(run, to_json(replacement));
}

std::vector<Attempt> read_attempts(const std::filesystem::path& run) {
  return read<Attempt>(run, [](const json& object, Attempt& attempt) {
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
  });
}

std::vector<Replacement> read_replacements(const std::filesystem::path& run) {
  return read<Replacement>(run, [](const json& object, Replacement& replacement) {
    object.at("attempt").get_to(replacement.attempt);
    object.at("replaced").get_to(replacement.process);
    object.at("time").get_to(replacement.time);
    object.at("host").get_to(replacement.host);
    object.at("step").get_to(replacement.step);
    object.at("cause").get_to(replacement.cause);
    object.at("detected_s").get_to(replacement.detected_s);
    object.at("recovered_s").get_to(replacement.recovered_s);
  });
}

bool opened_before(const std::optional<SlurmJob>& job, const std::filesystem::path& run) {
  if (!job || job->restarts == 0) {
    return false;
  }
  const std::vector<Attempt> attempts = read_attempts(run);
  const std::optional<Contact> left = read_contact_file(run);  // when nobody was left to write a line
  return (left && left->slurm_job == job->id) ||
         std::any_of(attempts.begin(), attempts.end(),
                     [&](const Attempt& attempt) { return attempt.opened && attempt.slurm_job == job->id; });
}

std::string utc_now() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(std::chrono::system_clock::now())));
}

}  // namespace lockstep
