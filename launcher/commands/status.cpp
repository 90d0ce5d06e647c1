// lockstep status: how a job is doing, from its run's folder and its coordinator.
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>

#include "base/error.h"
#include "base/progress.h"
#include "comm/control/client.h"
#include "launcher/commands/command.h"
#include "launcher/job/attempts.h"
#include "launcher/job/contact.h"
#include "launcher/job/run_metrics.h"
#include "launcher/job/slurm.h"
#include "launcher/output.h"
#include "trainer/checkpoint/retention.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kAnswerDeadlineMs = 3'000;
constexpr int kMostMissed = 3;
constexpr std::size_t kLinesShown = 5;
// An attempt's own files are written before its line; where they are on another machine, seen a little later perhaps.
constexpr std::chrono::seconds kLateWrites{1};

struct StatusOptions {
  std::string run;
  bool json = false;
  bool watch = false;
  double interval_s = 2;
};

struct Status {
  std::optional<control::JobState> job;  // of a coordinator that answers
  std::string job_problem;               // why there is none, where one was expected
  LastMetrics metrics;
  fs::path checkpoint;  // the newest, empty when there is none
  std::vector<Attempt> attempts;
  bool went_on = false;        // by a job that is none of them
  bool was_submitted = false;  // to Slurm, and nothing is there that a job of it has left
  std::vector<Replacement> replacements;
  double metrics_age_s = 0;  // since metrics.jsonl was last written
};

std::optional<double> number_in(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? std::optional(found->get<double>()) : std::nullopt;
}

// Whether a job that nobody recorded, of plain mpirun, has worked on the run since the last attempt's line was written.
// All times are those of one file system.
bool went_on_since(const fs::path& run, const fs::path& checkpoint) {
  const auto time_of = [](const fs::path& path) {
    std::error_code error;
    const fs::file_time_type time = fs::last_write_time(path, error);
    return error ? fs::file_time_type::min() : time;
  };
  const fs::file_time_type recorded = time_of(attempts_file(run));
  const fs::file_time_type written = std::max(time_of(metrics_file(run)), time_of(checkpoint));
  return recorded != fs::file_time_type::min() && written > recorded + kLateWrites;
}

bool is_run(const fs::path& folder) {
  return fs::exists(metrics_file(folder)) || fs::exists(contact_file(folder)) || fs::exists(attempts_file(folder)) ||
         fs::is_directory(folder / "checkpoints");
}

Status look_at(const fs::path& run) {
  Status status;
  if (const auto contact = read_contact_file(run)) {
    try {
      status.job = control::ask(contact->address, control::Question::kState, kAnswerDeadlineMs);
    } catch (const Error& error) {
      status.job_problem = error.what();
    }
  }
  status.metrics = read_last_metrics(run);
  if (const auto written = metrics_time(run)) {
    status.metrics_age_s = std::chrono::duration<double>(fs::file_time_type::clock::now() - *written).count();
  }
  if (const auto checkpoints = list_checkpoints(run / "checkpoints"); !checkpoints.empty()) {
    status.checkpoint = checkpoints.front().path;
  }
  status.was_submitted = !is_run(run) && fs::exists(batch_file(run));
  status.attempts = read_attempts(run);
  status.went_on = went_on_since(run, status.checkpoint);
  status.replacements = read_replacements(run);
  return status;
}

std::string state_text(const Status& status) {
  if (status.job) {
    return status.job->stop_requested ? "running, asked to stop" : "running";
  }
  if (!status.job_problem.empty()) {
    return "not running, or out of reach (its coordinator does not answer)";
  }
  // One that was asked to stop before it had opened the run left that as it was.
  const auto last = std::find_if(status.attempts.rbegin(), status.attempts.rend(), [](const Attempt& attempt) {
    return attempt.opened || attempt.exit_code != kExitRequeue;
  });
  if (last != status.attempts.rend() && !status.went_on) {
    return last->exit_code == 0 ? "finished" : last->exit_code == kExitRequeue ? "saved and stopped" : "failed";
  }
  return status.was_submitted ? "submitted, not started yet" : "not running";
}

std::string rank_lines(const control::JobState& job) {
  std::string text;
  for (const control::WorkerState& worker : job.workers) {
    const control::ActivityState& activity = worker.last.activity;
    std::string note;
    if (worker.ended) {
      note = "  ended";
    } else if (!worker.connected) {
      note = "  gone";
    } else if (worker.silent_seconds > 2) {
      note = fmt::format("  silent for {:.1f} s", worker.silent_seconds);
    } else if (worker.still_seconds > 2) {
      note = fmt::format("  stands still for {:.1f} s", worker.still_seconds);
    }
    text += fmt::format("  {:>5}  {:<16} {:>8}  {}, {:.1f} s{}\n", worker.rank, worker.host, worker.process,
                        control::describe(activity.phase, activity.step, activity.part), activity.seconds, note);
  }
  return text;
}

std::string to_text(const fs::path& run, const Status& status) {
  std::string text = fmt::format("run          {}\nstate        {}\n", run.string(), state_text(status));
  if (status.job) {
    const auto& job = *status.job;
    text += fmt::format("ranks        {} of {} up, attempt {}\n", job.workers.size(), job.world, job.attempt);
    if (!job.workers.empty() && job.workers.front().last.activity.total_steps > 0) {
      const control::ActivityState& activity = job.workers.front().last.activity;
      text += fmt::format("step         {} of {}\n", activity.completed_step, activity.total_steps);
    }
  }
  if (const Json& step = status.metrics.step; !step.is_null()) {
    const std::optional<double> loss = number_in(step, "loss");
    const std::optional<double> speed = number_in(step, "tokens_per_s");
    text += fmt::format("last step    {}: loss {}, {} tokens/s, {:.0f} s ago\n", step.at("step").get<std::int64_t>(),
                        loss ? fmt::format("{:.4f}", *loss) : "none", speed ? format_count(*speed) : "?",
                        status.metrics_age_s);
  }
  if (const Json& evaluation = status.metrics.evaluation; !evaluation.is_null()) {
    if (const std::optional<double> loss = number_in(evaluation, "valid_loss")) {
      text += fmt::format("validation   {:.4f} at step {}\n", *loss, evaluation.at("step").get<std::int64_t>());
    }
  }
  text += fmt::format("checkpoint   {}\n", status.checkpoint.empty() ? "none" : status.checkpoint.string());
  int failures = 0;
  for (const Attempt& attempt : status.attempts) {
    failures += attempt.exit_code != 0 && attempt.exit_code != kExitRequeue ? 1 : 0;
  }
  if (!status.attempts.empty()) {
    text += fmt::format("attempts     {} ended, {} of them in a failure\n", status.attempts.size(), failures);
    const std::size_t shown = std::min(status.attempts.size(), kLinesShown);
    for (std::size_t i = status.attempts.size() - shown; i < status.attempts.size(); ++i) {
      const Attempt& attempt = status.attempts[i];
      text += fmt::format("  {:>5}  {}  {} rank{}, steps {} to {}: {}\n", attempt.number, attempt.ended, attempt.ranks,
                          attempt.ranks == 1 ? "" : "s", attempt.first_step, attempt.last_step,
                          attempt.cause.empty() ? "finished" : attempt.cause);
    }
  }
  if (!status.replacements.empty()) {
    text += fmt::format("replaced     {} process{}\n", status.replacements.size(),
                        status.replacements.size() == 1 ? "" : "es");
    const std::size_t shown = std::min(status.replacements.size(), kLinesShown);
    for (std::size_t i = status.replacements.size() - shown; i < status.replacements.size(); ++i) {
      const Replacement& replacement = status.replacements[i];
      text += fmt::format("  {:>5}  {}  {}, after step {}: {}\n", replacement.attempt, replacement.time,
                          replacement.process, replacement.step, replacement.cause);
    }
  }
  if (status.job && !status.job->workers.empty()) {
    text += "   rank  host              process  doing\n" + rank_lines(*status.job);
  }
  return text;
}

Json to_json(const fs::path& run, const Status& status) {
  Json json = {{"run", run.string()},
               {"state", state_text(status)},
               {"last_step", status.metrics.step},
               {"last_evaluation", status.metrics.evaluation}};
  json["checkpoint"] = status.checkpoint.empty() ? Json() : Json(status.checkpoint.string());
  json["attempts"] = Json::array();
  for (const Attempt& attempt : status.attempts) {
    json["attempts"].push_back(lockstep::to_json(attempt));
  }
  json["replacements"] = Json::array();
  for (const Replacement& replacement : status.replacements) {
    json["replacements"].push_back(lockstep::to_json(replacement));
  }
  json["ranks"] = Json::array();
  if (status.job) {
    json["attempt"] = status.job->attempt;
    json["world"] = status.job->world;
    for (const control::WorkerState& worker : status.job->workers) {
      const control::ActivityState& activity = worker.last.activity;
      json["ranks"].push_back({{"rank", worker.rank},
                               {"host", worker.host},
                               {"process", worker.process},
                               {"connected", worker.connected},
                               {"ended", worker.ended},
                               {"doing", control::describe(activity.phase, activity.step, activity.part)},
                               {"seconds", activity.seconds},
                               {"first_step", activity.first_step},
                               {"completed_step", activity.completed_step},
                               {"silent_seconds", worker.silent_seconds},
                               {"still_seconds", worker.still_seconds}});
    }
  }
  return json;
}

int run_status(const StatusOptions& options, CommandContext& context) {
  const fs::path run = options.run;
  require(fs::is_directory(run), "{}: no such folder; expected a run, runs/NAME", run.string());
  require(is_run(run) || fs::exists(batch_file(run)), "{} is no run: it has neither checkpoints nor metrics.jsonl",
          run.string());
  if (options.watch) {
    context.stop.listen();
  }
  for (int missed = 0;;) {
    const Status status = look_at(run);
    missed = status.job ? 0 : missed + 1;
    if (options.json) {
      print(to_json(run, status).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    } else {
      // A terminal is redrawn from its upper left corner.
      const bool redraw = options.watch && context.log.columns() > 0;
      print((redraw ? "\x1b[H\x1b[2J" : "") + to_text(run, status));
    }
    // An answer that is missing once says little; a job that has ended has taken its contact file along.
    if (!options.watch || (!status.job && (status.job_problem.empty() || missed >= kMostMissed))) {
      return kExitDone;
    }
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(options.interval_s);
    while (std::chrono::steady_clock::now() < until) {
      if (context.stop.requested()) {
        return kExitDone;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
}

}  // namespace

void add_status(CLI::App& app, CommandContext& context) {
  const auto options = std::make_shared<StatusOptions>();
  CLI::App* command = app.add_subcommand(
      "status", "Say how a job is doing: its step and loss, what each rank does, restarts and causes");
  command->add_option("RUN", options->run, "The folder of a run, runs/NAME")->required();
  command->add_flag("--json", options->json, "Print JSON");
  command->add_flag("--watch", options->watch, "Again and again, until the job ends or Ctrl-C");
  command->add_option("--interval", options->interval_s, "Seconds between two looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->footer(
      "Works for jobs of lockstep launch and of plain mpirun or srun, from any machine that sees the folder and "
      "reaches\n"
      "the job's coordinator, for the user who started it.\n"
      "Example: lockstep status runs/shakespeare --watch");
  command->callback(
      [options, &context] { context.run = [options, &context] { return run_status(*options, context); }; });
}

}  // namespace lockstep
