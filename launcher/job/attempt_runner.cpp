#include "launcher/job/attempt_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <limits>
#include <thread>
#include <utility>

#include "base/error.h"
#include "launcher/commands/command.h"
#include "launcher/job/host_reach.h"
#include "launcher/job/mpi_processes.h"
#include "launcher/job/run_metrics.h"
#include "launcher/job/served_processes.h"
#include "launcher/job_config.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/run_folder.h"

namespace lockstep {
namespace {

using std::chrono::milliseconds;

constexpr int kPollMs = 50;
// What ranks that were told to end may take, and mpirun to notice, before both are made to.
constexpr milliseconds kPatience{2'000};
// Where a host cannot be reached, mpirun would wait for it in vain.
constexpr milliseconds kShortPatience{1'000};

double seconds_between(AttemptRunner::Clock::time_point begin, AttemptRunner::Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

std::int64_t newest_checkpoint_step(const std::filesystem::path& run) {
  try {
    const auto all = list_checkpoints(run / "checkpoints");
    return all.empty() ? 0 : static_cast<std::int64_t>(all.front().step);
  } catch (const Error&) {
    return 0;
  }
}

AttemptRunner::AttemptRunner(const LaunchRequest& request, StopSignal& stop, Log& log, JobOutput& output,
                             RestartPolicy& policy)
    : request_(request), stop_(stop), log_(log), output_(output), policy_(policy), run_(run_folder(request.config)) {
  listen();
}

AttemptRunner::~AttemptRunner() = default;

void AttemptRunner::listen() {
  control::Coordinator::Options options;
  const bool one_machine = request_.hosts.empty() && !request_.slurm;
  options.on_this_machine_only = one_machine;
  options.silence_ms = std::max(1, request_.config.comm.silence_s) * 1000;
  options.still_ms = request_.config.comm.stuck_s * 1000;
  options.start_ms =
      request_.config.comm.silence_s == 0 ? std::numeric_limits<int>::max() : request_.config.comm.timeout_s * 1000;
  options.replaces_workers = request_.servers > 0;
  options.on_trouble = [this](const std::vector<control::Trouble>& found) {
    const std::lock_guard lock(mutex_);
    troubles_.insert(troubles_.end(), found.begin(), found.end());
  };
  contact_.address.token = options.token;
  contact_.address.hosts = one_machine ? std::vector<std::string>{"127.0.0.1"} : own_addresses();
  coordinator_ = std::make_unique<control::Coordinator>(std::move(options));
  contact_.address.port = coordinator_->port();
  contact_.slurm_job = request_.slurm ? request_.slurm->id : "";
}

std::unique_ptr<RankProcesses> AttemptRunner::start(int number, const Placement& placement, const std::string& resume) {
  {
    const std::lock_guard lock(mutex_);
    troubles_.clear();
  }
  coordinator_->begin_attempt(number, placement.ranks);
  contact_.attempt = number;
  const std::map<std::string, std::string> variables = {{kContactVariable, to_text(contact_)},
                                                        {kConfigVariable, request_.config_variable},
                                                        {"LOCKSTEP_PROGRESS", "lines"}};
  if (request_.servers > 0) {
    return std::make_unique<ServedProcesses>(
        ServedProcesses::Surroundings{
            .request = request_,
            .coordinator = *coordinator_,
            .policy = policy_,
            .output = output_,
            .log = log_,
            .run = run_,
            .progress =
                [this] {
                  return AttemptProgress{end_.opened, std::max(end_.first_step, end_.last_step)};
                }},
        ServedProcesses::Plan{number, placement, resume, variables});
  }
  return std::make_unique<MpiProcesses>(request_, placement, resume, variables, output_);
}

AttemptEnd AttemptRunner::run(int number, const Placement& placement, const std::string& resume) {
  end_ = {};
  end_.first_step = newest_checkpoint_step(run_);
  progress_.reset();
  step_seen_ = 0;
  ending_since_.reset();
  terminated_ = killed_ = false;
  const auto metrics_before = metrics_time(run_);
  processes_ = start(number, placement, resume);
  while (!processes_->exit_code()) {
    processes_->tend(kPollMs);
    output_.flush();
    const control::JobState job = coordinator_->state();
    look_at(job);
    handle_stop(job);
    take_troubles();
    end_processes();
  }
  processes_->tend(0);
  output_.flush();
  look_at(coordinator_->state());
  take_troubles();
  const int exit_code = *processes_->exit_code();
  wait_for_cause(exit_code);
  if (!end_.refused && exit_code != kExitUsage && metrics_time(run_) != metrics_before) {
    look_at_folder();
  }
  progress_.reset();
  end_.last_step = std::max(end_.last_step, end_.first_step);
  // A starter that ends the ranks which are slower to go than others says so, and not what all of them ended with.
  const std::optional<int> common = coordinator_->common_exit_code();
  end_.exit_code = common == 0 || common == kExitRequeue ? *common : exit_code;
  if (end_.exit_code != 0 && end_.exit_code != kExitRequeue && end_.cause.empty()) {
    noticed_ = Clock::now();
    end_.again_is_useless = end_.refused = end_.exit_code == kExitUsage;
    end_.cause = fmt::format("{} ended with exit code {}", processes_->name(), end_.exit_code);
    if (!end_.opened && !end_.again_is_useless) {
      output_.show_starters_lines();
    }
  } else if (end_.exit_code == 0 || end_.exit_code == kExitRequeue) {
    end_.cause.clear();  // a connection that broke in the last moment
  }
  processes_.reset();
  return end_;
}

void AttemptRunner::take_troubles() {
  std::vector<control::Trouble> troubles;
  {
    const std::lock_guard lock(mutex_);
    troubles.swap(troubles_);
  }
  for (const control::Trouble& trouble : troubles) {
    if (processes_->take(trouble) || end_.by_signal) {
      continue;
    }
    if (!trouble.fatal && trouble.kind != control::TroubleKind::kFailed) {
      log_.warning("launch: {}", trouble.text);
      continue;
    }
    if (end_.cause.empty()) {
      noticed_ = Clock::now();
      end_.detected_s = trouble.silent_seconds;
    }
    if (end_.cause.size() < 1'000) {
      end_.cause += (end_.cause.empty() ? "" : "; ") + trouble.text;
    }
    end_.was_told |= trouble.kind == control::TroubleKind::kFailed;
    end_.again_is_useless |= trouble.again_is_useless;
    end_.refused |= trouble.again_is_useless && trouble.exit_code == kExitUsage;
    end_.had_stranger |= trouble.kind == control::TroubleKind::kSilent && !is_here(trouble.host);
  }
  const std::optional<RankProcesses::Fault> fault = processes_->fault();
  if (fault && end_.cause.empty()) {
    take_fault(*fault);
  }
}

void AttemptRunner::take_fault(const RankProcesses::Fault& fault) {
  noticed_ = Clock::now();
  end_.cause = fault.failure.cause;
  end_.detected_s = fault.detected_s;
  end_.again_is_useless = fault.failure.again_is_useless;
  end_.refused = fault.failure.refused;
  end_.was_told = fault.failure.is_telling;
  end_.is_counted = fault.failure.is_counted;
  end_.had_stranger = fault.had_stranger;
  end_.verdict = fault.exit_code;
}

void AttemptRunner::look_at(const control::JobState& job) {
  for (const control::WorkerState& worker : job.workers) {
    const control::ActivityState& activity = worker.last.activity;
    if (activity.total_steps == 0) {
      continue;
    }
    // One that has taken another's place begins later.
    end_.first_step = end_.opened ? std::min(end_.first_step, activity.first_step) : activity.first_step;
    end_.opened = true;
    end_.last_step = std::max(end_.last_step, activity.completed_step);
    if (worker.rank != 0) {
      continue;
    }
    if (activity.completed_step > step_seen_) {
      const auto now = Clock::now();
      if (step_seen_ > 0) {
        step_seconds_ = seconds_between(step_time_, now) / static_cast<double>(activity.completed_step - step_seen_);
      }
      step_time_ = now;
      step_seen_ = activity.completed_step;
    }
    if (recovering_ && activity.completed_step > activity.first_step) {
      recovering_ = false;
      end_.recovered_s = seconds_between(noticed_, Clock::now());
      log_.info("launch: training again {:.1f} s after the failure was noticed", end_.recovered_s);
    }
    show_progress(activity);
  }
}

void AttemptRunner::show_progress(const control::ActivityState& activity) {
  if (log_.columns() <= 0) {
    return;
  }
  if (!progress_) {
    progress_ =
        std::make_unique<Progress>(log_, ProgressOptions{.what = "train",
                                                         .total = static_cast<std::uint64_t>(activity.total_steps),
                                                         .start = static_cast<std::uint64_t>(activity.first_step)});
  }
  const auto done = static_cast<std::uint64_t>(activity.completed_step);
  if (progress_->due(done)) {
    const std::array<std::string, 2> fields = {fmt::format("loss {:.4f}", activity.loss),
                                               format_count(activity.tokens_per_s) + " tokens/s"};
    progress_->update(done, fields);
  }
}

// Whether a save that is begun now would just fit into what is left of the job's time.
bool AttemptRunner::time_is_up(const control::JobState& job) const {
  if (!request_.slurm || !request_.slurm->end) {
    return false;
  }
  double save_s = 0;
  for (const control::WorkerState& worker : job.workers) {
    save_s = std::max(save_s, worker.last.activity.save_seconds);
  }
  const std::chrono::duration<double> left = *request_.slurm->end - std::chrono::system_clock::now();
  return left.count() <= 2 * save_s + 2 * step_seconds_ + 10;
}

void AttemptRunner::handle_stop(const control::JobState& job) {
  if (stop_sent_) {
    return;
  }
  save_was_early_ = !stop_.requested() && time_is_up(job);
  if (stop_.requested() || save_was_early_) {
    stop_sent_ = true;
    coordinator_->request_stop();
    processes_->stop(request_.config.comm.silence_s == 0);  // then nobody is connected
    log_.info("launch: {}; saving after the step in progress{}",
              save_was_early_ ? std::string("the job's time is almost up") : fmt::format("signal {}", stop_.number()),
              save_was_early_ ? "" : " (a second signal ends the job at once)");
  }
}

// Once the attempt is over, its processes are told to end, and made to when they do not.
void AttemptRunner::end_processes() {
  const bool over = !end_.cause.empty() || stop_.repeated();
  if (over && !ending_since_) {
    ending_since_ = Clock::now();
    if (end_.cause.empty()) {
      end_.cause = "ended by a second signal";
      end_.by_signal = true;
    }
    coordinator_->end(end_.cause);
    processes_->end();
  }
  if (!ending_since_) {
    return;
  }
  const milliseconds patience = end_.had_stranger ? kShortPatience : kPatience;
  if (!terminated_ && (stop_.repeated() || Clock::now() - *ending_since_ > patience)) {
    terminated_ = true;
    processes_->terminate();
  }
  if (!killed_ && Clock::now() - *ending_since_ > 2 * patience) {
    killed_ = true;
    processes_->kill();
  }
}

// The starter may have noticed a dead rank before the coordinator has, which knows more about it.
void AttemptRunner::wait_for_cause(int exit_code) {
  const auto is_missed = [](const control::WorkerState& worker) { return !worker.ended; };
  const auto until = Clock::now() + kPatience;
  while (exit_code != 0 && exit_code != kExitRequeue && end_.cause.empty() && Clock::now() < until) {
    const control::JobState job = coordinator_->state();
    if (!std::any_of(job.workers.begin(), job.workers.end(), is_missed)) {
      return;
    }
    std::this_thread::sleep_for(milliseconds(10));
    take_troubles();
  }
}

// How far an attempt got that has written metrics. What its workers told is older, by up to a heartbeat, and with
// comm.silence_s 0 they tell nothing.
void AttemptRunner::look_at_folder() {
  const std::optional<Contact> contact = read_contact_file(run_);
  if (request_.config.comm.silence_s > 0 && contact && contact->address.token.hex() != contact_.address.token.hex()) {
    return;  // another job is at work there, and this one has not come that far
  }
  end_.opened = true;
  try {
    const nlohmann::ordered_json line = read_last_metrics(run_).step;
    end_.last_step = std::max(end_.last_step, line.is_null() ? 0 : line.at("step").get<std::int64_t>());
  } catch (const Error& error) {
    log_.warning("launch: {}", error.what());
  }
}

}  // namespace lockstep
