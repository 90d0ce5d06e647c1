#include "launcher/job/slurm.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <iomanip>
#include <sstream>

#include "base/error.h"
#include "launcher/job/child.h"
#include "launcher/job/start_command.h"

namespace lockstep {
namespace {

constexpr int kAnswerDeadlineMs = 20'000;
constexpr int kEndedBySignal = 128;  // and its number: see Child::exit_code()

template <typename Number>
std::optional<Number> number_of(const std::optional<std::string>& text) {
  Number number{};
  if (!text) {
    return {};
  }
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  return error == std::errc() && end == text->data() + text->size() ? std::optional(number) : std::nullopt;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line);
  }
  return lines;
}

std::string answer(const std::vector<std::string>& command) {
  const ChildResult result = run_child({command}, kAnswerDeadlineMs);
  if (result.timed_out || result.exit_code != 0) {
    fail(ErrorCode::kIo, "{}: {}", shell_line({command}),
         result.timed_out ? std::string("no answer") : result.output.substr(0, result.output.find('\n')));
  }
  return result.output;
}

std::vector<Host> hosts_of(const EnvironmentLookup& environment) {
  const std::string list = environment("SLURM_JOB_NODELIST").value_or("");
  require(!list.empty(), "SLURM_JOB_ID is set but SLURM_JOB_NODELIST is not: this is no Slurm allocation");
  std::vector<Host> hosts;
  for (const std::string& name : lines_of(answer({"scontrol", "show", "hostnames", list}))) {
    hosts.push_back({name, 1});
  }
  const auto tasks = environment("SLURM_TASKS_PER_NODE");
  const std::vector<int> each = tasks ? parse_tasks_per_node(*tasks) : std::vector<int>{};
  for (std::size_t i = 0; i < hosts.size() && i < each.size(); ++i) {
    hosts[i].slots = each[i];
  }
  return hosts;
}

// "2026-11-26T07:33:11", in local time; "N/A" or "Unknown" without a limit.
std::optional<std::chrono::system_clock::time_point> parse_local_time(const std::string& text) {
  std::tm time = {};
  std::istringstream stream(text);
  stream >> std::get_time(&time, "%Y-%m-%dT%H:%M:%S");
  if (stream.fail()) {
    return {};
  }
  time.tm_isdst = -1;
  return std::chrono::system_clock::from_time_t(std::mktime(&time));
}

std::optional<std::chrono::system_clock::time_point> end_of(const EnvironmentLookup& environment,
                                                            const std::string& id) {
  if (const auto seconds = number_of<std::int64_t>(environment("SLURM_JOB_END_TIME"))) {
    return std::chrono::system_clock::time_point(std::chrono::seconds(*seconds));
  }
  const ChildResult result = run_child({{"squeue", "--noheader", "--job", id, "--format", "%e"}}, kAnswerDeadlineMs);
  return result.exit_code == 0 ? parse_local_time(result.output) : std::nullopt;
}

}  // namespace

std::optional<SlurmJob> find_slurm_job(const EnvironmentLookup& environment) {
  const auto id = environment("SLURM_JOB_ID");
  if (!id) {
    return {};
  }
  const RankEnvironment ranks = detect_rank_environment(environment);
  require(ranks.starter == Starter::kAlone,
          "launch was itself started by {}, once a task; start it once, in the batch script or a shell of salloc",
          ranks.starter == Starter::kSrun ? "srun" : "mpirun");
  SlurmJob job;
  const auto array = environment("SLURM_ARRAY_JOB_ID");
  job.id = array ? *array + "_" + environment("SLURM_ARRAY_TASK_ID").value_or("0") : *id;
  job.restarts = number_of<int>(environment("SLURM_RESTART_COUNT")).value_or(0);
  job.is_batch =
      environment("SLURM_JOBID") && environment("SLURM_SUBMIT_HOST") && environment("ENVIRONMENT") == "BATCH";
  job.hosts = hosts_of(environment);
  job.end = end_of(environment, job.id);
  return job;
}

std::map<std::string, std::string> parse_scontrol(const std::string& text) {
  std::map<std::string, std::string> fields;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const std::size_t equals = word.find('=');
    if (equals != std::string::npos) {
      fields.emplace(word.substr(0, equals), word.substr(equals + 1));
    }
  }
  return fields;
}

bool may_requeue(const std::map<std::string, std::string>& job) {
  const auto state = job.find("JobState");
  return state != job.end() && state->second == "RUNNING";
}

std::string requeue(const std::string& id) try {
  // Slurm's signals reach every process of a batch job, scontrol among them.
  std::map<std::string, std::string> job;
  for (int i = 0; i < 3 && job.empty(); ++i) {
    job = parse_scontrol(run_child({{"scontrol", "show", "job", "-o", id}}, kAnswerDeadlineMs).output);
  }
  if (!may_requeue(job)) {
    const auto state = job.find("JobState");
    return "it is " + (state == job.end() ? std::string("not known any more") : state->second);
  }
  const ChildResult result = run_child({{"scontrol", "requeue", id}}, kAnswerDeadlineMs);
  if (result.timed_out) {
    return "scontrol requeue: no answer";
  }
  // To put a job back ends its processes, and scontrol may be among them before it can say that all went well.
  const bool was_ended_by_it = result.exit_code > kEndedBySignal && result.output.empty();
  return result.exit_code == 0 || was_ended_by_it
             ? ""
             : "scontrol requeue: " + result.output.substr(0, result.output.find('\n'));
} catch (const Error& error) {
  return error.what();
}

bool srun_has_pmix() {
  try {
    const ChildResult result = run_child({{"srun", "--mpi=list"}}, kAnswerDeadlineMs);
    return result.exit_code == 0 && result.output.find("pmix") != std::string::npos;
  } catch (const Error&) {
    return false;  // no srun
  }
}

std::string batch_script(const BatchOptions& options) {
  std::string script = "#!/bin/bash\n";
  const auto directive = [&](const std::string& text) { script += "#SBATCH " + text + "\n"; };
  directive("--job-name=" + quoted(options.name));
  directive(fmt::format("--nodes={}", options.nodes));
  directive(fmt::format("--ntasks-per-node={}", options.ranks_per_node));
  if (options.cpus_per_rank > 0) {
    directive(fmt::format("--cpus-per-task={}", options.cpus_per_rank));
  }
  if (options.gpus_per_node > 0) {
    directive(fmt::format("--gpus-per-node={}", options.gpus_per_node));
  }
  if (!options.time.empty()) {
    directive("--time=" + quoted(options.time));
  }
  if (!options.partition.empty()) {
    directive("--partition=" + quoted(options.partition));
  }
  if (!options.account.empty()) {
    directive("--account=" + quoted(options.account));
  }
  script += "# Save before the end of the time limit, go back into the queue, outlive a node.\n";
  directive(fmt::format("--signal=B:USR1@{}", options.signal_s));
  directive("--requeue");
  directive("--no-kill");
  directive("--open-mode=append");
  directive("--chdir=" + quoted(options.folder));
  directive("--output=" + quoted(options.output));
  script += "exec " + shell_line({options.command}) + "\n";
  return script;
}

std::filesystem::path batch_file(const std::filesystem::path& run) { return run / "job.sbatch"; }

// M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.
std::optional<std::int64_t> parse_time_limit(const std::string& text) {
  const std::size_t dash = text.find('-');
  const bool has_days = dash != std::string::npos;
  std::vector<std::int64_t> parts;
  std::istringstream words(has_days ? text.substr(dash + 1) : text);
  for (std::string word; std::getline(words, word, ':');) {
    parts.push_back(number_of<std::int32_t>(word).value_or(-1));
  }
  const std::int64_t days = has_days ? number_of<std::int32_t>(text.substr(0, dash)).value_or(-1) : 0;
  const bool is_time = !parts.empty() && parts.size() <= 3 && days >= 0 && std::ranges::min(parts) >= 0;
  if (!is_time) {
    return {};
  }
  if (!has_days && parts.size() < 3) {
    parts.insert(parts.begin(), 0);  // no hours
  }
  parts.resize(3);
  const std::int64_t seconds = ((days * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2];
  return seconds == 0 ? std::nullopt : std::optional((seconds + 59) / 60 * 60);
}

}  // namespace lockstep
