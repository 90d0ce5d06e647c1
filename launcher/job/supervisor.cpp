#include "launcher/job/supervisor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <deque>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

#include "base/cores.h"
#include "base/error.h"
#include "base/progress.h"
#include "comm/control/coordinator.h"
#include "launcher/commands/command.h"
#include "launcher/job/attempts.h"
#include "launcher/job/contact.h"
#include "launcher/job/host_reach.h"
#include "launcher/job/rank_logs.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/run_folder.h"

namespace lockstep {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kPollMs = 50;
// What ranks that were told to end may take, and mpirun to notice, before both are made to.
constexpr milliseconds kPatience{2'000};
// Where a host cannot be reached, mpirun would wait for it in vain.
constexpr milliseconds kShortPatience{1'000};
// A failure at the same step so often in a row is no accident.
constexpr int kSameStep = 3;
// A run that was open and is refused (a folder without room, or read-only) is tried again, for some minutes.
constexpr int kMostRefusals = 10;
// A start that leaves hosts out because of one question that went wrong would be a pity.
constexpr int kFirstQuestions = 3;
constexpr std::size_t kStarterLinesShown = 20;

milliseconds next_back_off(milliseconds last) { return std::clamp(2 * last, milliseconds(500), milliseconds(60'000)); }

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

StartPlan plan_of(const LaunchRequest& request, const Placement& placement) {
  StartPlan plan;
  plan.starter = request.starter;
  plan.mpirun_major = request.mpirun_major;
  plan.placement = placement;
  plan.in_slurm = request.slurm.has_value();
  plan.ssh = request.ssh;
  plan.as_root = ::geteuid() == 0;
  plan.cores = static_cast<int>(usable_cores());
  plan.worker = request.worker;
  if (request.starter == JobStarter::kMpirun) {
    plan.forwarded = {kContactVariable, "LOCKSTEP_PROGRESS"};
    for (const char* name : {"LOCKSTEP_LOG", "LD_LIBRARY_PATH", "LOCKSTEP_CUDA_LIBRARIES"}) {
      if (std::getenv(name) != nullptr) {
        plan.forwarded.emplace_back(name);
      }
    }
  }
  return plan;
}

// 0 where there is none, or none can be seen.
std::int64_t newest_checkpoint_step(const std::filesystem::path& run) {
  try {
    const auto all = list_checkpoints(run / "checkpoints");
    return all.empty() ? 0 : static_cast<std::int64_t>(all.front().step);
  } catch (const Error&) {
    return 0;
  }
}

// Whether this Slurm job has worked on the run before it was put back into the queue. Its script says --resume none or
// DIR once more, which was meant for its first start.
bool opened_before(const LaunchRequest& request, const std::filesystem::path& run) {
  if (!request.slurm || request.slurm->restarts == 0) {
    return false;
  }
  const std::string& id = request.slurm->id;
  const std::vector<Attempt> attempts = read_attempts(run);
  const std::optional<Contact> left = read_contact_file(run);  // when nobody was left to write a line
  return (left && left->slurm_job == id) || std::any_of(attempts.begin(), attempts.end(), [&](const Attempt& attempt) {
           return attempt.opened && attempt.slurm_job == id;
         });
}

Placement placement_of(const LaunchRequest& request, const std::vector<Host>& hosts) {
  if (request.hosts.empty()) {
    return {request.ranks, {}};
  }
  return place(hosts, request.ranks);
}

}  // namespace

ChildCommand first_command(const LaunchRequest& request) {
  StartPlan plan = plan_of(request, placement_of(request, request.hosts));
  plan.worker.insert(plan.worker.end(), {"--resume", request.resume});
  return start_command(plan);
}

class Supervisor::Impl {
 public:
  Impl(LaunchRequest request, StopSignal& stop, Log& log)
      : request_(std::move(request)),
        stop_(stop),
        log_(log),
        run_(run_folder(request_.config)),
        logs_(run_),
        ever_opened_(opened_before(request_, run_)),
        resume_(ever_opened_ ? "auto" : request_.resume) {}

  int run();

 private:
  // How an attempt ended.
  struct End {
    int exit_code = 0;
    std::string cause;  // empty when nothing failed
    bool again_is_useless = false;
    bool refused = false;       // for what it was given: bad input, no room
    bool had_stranger = false;  // a rank on a host that could not be reached: it may still be running
    double detected_s = 0;
    std::int64_t first_step = 0;
    std::int64_t last_step = 0;
    bool opened = false;    // the run, so that --resume none has been carried out
    bool was_told = false;  // by a worker that said itself what had failed
    double recovered_s = 0;
  };
  [[nodiscard]] Placement choose_hosts(bool is_first);
  [[nodiscard]] End attempt(int number, const Placement& placement);
  void relay(const OutputLine& line, Child::Stream stream);
  void look_at(const control::JobState& job, End& end);
  void take_troubles(End& end);
  void wait_for_cause(int exit_code, End& end);
  void handle_stop(const control::JobState& job, const Child& child);
  [[nodiscard]] bool time_is_up(const control::JobState& job) const;
  [[nodiscard]] int run_attempts();
  [[nodiscard]] int stop_for_now(bool saved);
  [[nodiscard]] int stop_between_attempts();
  void look_at_folder(std::filesystem::file_time_type begin, End& end) const;
  [[nodiscard]] bool pause(milliseconds length);
  void record(int number, const Placement& placement, const std::string& started, const End& end);

  const LaunchRequest request_;
  StopSignal& stop_;
  Log& log_;
  const std::filesystem::path run_;
  RankLogs logs_;
  bool ever_opened_;    // the run, by this job
  std::string resume_;  // of the next attempt
  std::unique_ptr<control::Coordinator> coordinator_;
  Contact contact_;
  std::mutex mutex_;
  std::vector<control::Trouble> troubles_;  // of the coordinator's thread, under the mutex
  std::deque<std::string> starter_lines_;   // the last ones that mpirun or srun said itself
  std::unique_ptr<Progress> progress_;
  bool several_ranks_ = false;
  bool stop_sent_ = false;
  bool save_was_early_ = false;
  Clock::time_point noticed_;  // when the last failure was
  bool recovering_ = false;
  Clock::time_point step_time_;
  std::int64_t step_seen_ = 0;
  double step_seconds_ = 0;
};

// Hosts that do not answer are left out, and used again once they do.
Placement Supervisor::Impl::choose_hosts(bool is_first) {
  const HostReach reach = request_.hosts_are_slurms ? HostReach::kSrun : HostReach::kSsh;
  std::vector<std::string> problems = problems_of_hosts(request_.hosts, reach, request_.ssh);
  const auto answers = [](const std::string& problem) { return problem.empty(); };
  for (int i = 1; is_first && i < kFirstQuestions && !std::all_of(problems.begin(), problems.end(), answers); ++i) {
    problems = problems_of_hosts(request_.hosts, reach, request_.ssh);
  }
  std::vector<Host> usable;
  for (std::size_t i = 0; i < problems.size(); ++i) {
    const Host& host = request_.hosts[i];
    if (problems[i].empty()) {
      usable.push_back(host);
      continue;
    }
    require(!is_first || request_.slurm.has_value(), "host {} cannot be used: {}", host.name, problems[i]);
    log_.warning("launch: host {} is left out: {}", host.name, problems[i]);
  }
  return placement_of(request_, usable);
}

void Supervisor::Impl::relay(const OutputLine& line, Child::Stream stream) {
  logs_.write(line);
  if (line.rank < 0) {
    starter_lines_.push_back(line.text);
    if (starter_lines_.size() > kStarterLinesShown) {
      starter_lines_.pop_front();
    }
    return;
  }
  const std::string prefix = fmt::format("[rank {}] ", line.rank);
  const bool has_prefix = !several_ranks_ || line.text.starts_with(prefix);
  const std::string text = (has_prefix ? "" : prefix) + line.text;
  const bool to_stderr = request_.starter == JobStarter::kMpirun ? line.is_error : stream == Child::Stream::kErr;
  if (to_stderr) {
    log_.write(LogLevel::kInfo, text);
  } else {
    std::fwrite((text + "\n").data(), 1, text.size() + 1, stdout);  // lost where nobody reads it: the job goes on
    std::fflush(stdout);
  }
}

void Supervisor::Impl::take_troubles(End& end) {
  const std::lock_guard lock(mutex_);
  for (const control::Trouble& trouble : std::exchange(troubles_, {})) {
    if (!trouble.fatal && trouble.kind != control::TroubleKind::kFailed) {
      log_.warning("launch: {}", trouble.text);
      continue;
    }
    if (end.cause.empty()) {
      noticed_ = Clock::now();
      end.detected_s = trouble.silent_seconds;
    }
    if (end.cause.size() < 1'000) {
      end.cause += (end.cause.empty() ? "" : "; ") + trouble.text;
    }
    end.was_told |= trouble.kind == control::TroubleKind::kFailed;
    end.again_is_useless |= trouble.again_is_useless;
    end.refused |= trouble.again_is_useless && trouble.exit_code == kExitUsage;
    end.had_stranger |= trouble.kind == control::TroubleKind::kSilent && !is_here(trouble.host);
  }
}

void Supervisor::Impl::look_at(const control::JobState& job, End& end) {
  for (const control::WorkerState& worker : job.workers) {
    const control::ActivityState& activity = worker.last.activity;
    if (activity.total_steps == 0) {
      continue;
    }
    end.opened = true;
    end.first_step = activity.first_step;
    end.last_step = std::max(end.last_step, activity.completed_step);
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
      end.recovered_s = seconds_between(noticed_, Clock::now());
      log_.info("launch: training again {:.1f} s after the failure was noticed", end.recovered_s);
    }
    if (log_.columns() > 0) {
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
  }
}

// Whether a save that is begun now would just fit into what is left of the job's time.
bool Supervisor::Impl::time_is_up(const control::JobState& job) const {
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

void Supervisor::Impl::handle_stop(const control::JobState& job, const Child& child) {
  if (stop_sent_) {
    return;
  }
  save_was_early_ = !stop_.requested() && time_is_up(job);
  if (stop_.requested() || save_was_early_) {
    stop_sent_ = true;
    coordinator_->request_stop();
    if (request_.config.comm.silence_s == 0) {
      child.signal(SIGUSR1);  // nobody is connected; mpirun and srun hand it on
    }
    log_.info("launch: {}; saving after the step in progress{}",
              save_was_early_ ? std::string("the job's time is almost up") : fmt::format("signal {}", stop_.number()),
              save_was_early_ ? "" : " (a second signal ends the job at once)");
  }
}

Supervisor::Impl::End Supervisor::Impl::attempt(int number, const Placement& placement) {
  End end;
  starter_lines_.clear();
  progress_.reset();
  several_ranks_ = placement.ranks > 1;
  step_seen_ = 0;
  {
    const std::lock_guard lock(mutex_);
    troubles_.clear();
  }
  coordinator_->begin_attempt(number, placement.ranks);
  contact_.attempt = number;
  const auto begin = std::filesystem::file_time_type::clock::now();
  end.first_step = newest_checkpoint_step(run_);

  StartPlan plan = plan_of(request_, placement);
  plan.worker.insert(plan.worker.end(), {"--resume", resume_});
  ChildCommand command = start_command(plan);
  command.variables[kContactVariable] = to_text(contact_);
  command.variables["LOCKSTEP_PROGRESS"] = "lines";

  Child child(command);
  const auto on_line = [&](Child::Stream stream, const std::string& line) {
    relay(parse_output(request_.starter, request_.mpirun_major, line), stream);
  };
  std::optional<Clock::time_point> ending_since;  // the attempt is over, and its processes are on their way out
  bool told = false;
  bool killed = false;
  while (!child.exit_code()) {
    child.read(kPollMs, on_line);
    logs_.flush();
    const control::JobState job = coordinator_->state();
    look_at(job, end);
    handle_stop(job, child);
    take_troubles(end);
    const bool over = !end.cause.empty() || stop_.repeated();
    if (over && !ending_since) {
      ending_since = Clock::now();
      coordinator_->end(end.cause.empty() ? "ended by a second signal" : end.cause);
    }
    const milliseconds patience = end.had_stranger ? kShortPatience : kPatience;
    if (ending_since && !told && (stop_.repeated() || Clock::now() - *ending_since > patience)) {
      told = true;
      child.signal(SIGTERM);
    }
    if (ending_since && !killed && Clock::now() - *ending_since > 2 * patience) {
      killed = true;
      child.signal_group(SIGKILL);
    }
  }
  child.read(0, on_line);
  logs_.flush();
  look_at(coordinator_->state(), end);
  if (request_.config.comm.silence_s == 0) {
    look_at_folder(begin, end);
  }
  take_troubles(end);
  wait_for_cause(*child.exit_code(), end);
  progress_.reset();
  end.last_step = std::max(end.last_step, end.first_step);
  // A starter that ends the ranks which are slower to go than others says so, and not what all of them ended with.
  const std::optional<int> common = coordinator_->common_exit_code();
  end.exit_code = common == 0 || common == kExitRequeue ? *common : *child.exit_code();
  if (end.exit_code != 0 && end.exit_code != kExitRequeue && end.cause.empty()) {
    noticed_ = Clock::now();
    end.again_is_useless = end.refused = end.exit_code == kExitUsage;
    end.cause = fmt::format("{} ended with exit code {}", command.arguments.front(), end.exit_code);
    if (!end.opened && !end.again_is_useless) {
      for (const std::string& line : starter_lines_) {
        log_.write(LogLevel::kInfo, line);
      }
    }
  } else if (end.exit_code == 0 || end.exit_code == kExitRequeue) {
    end.cause.clear();  // a connection that broke in the last moment
  }
  return end;
}

// The starter may have noticed a dead rank before the coordinator has, which knows more about it.
void Supervisor::Impl::wait_for_cause(int exit_code, End& end) {
  const auto is_missed = [](const control::WorkerState& worker) { return !worker.ended; };
  const auto until = Clock::now() + kPatience;
  while (exit_code != 0 && exit_code != kExitRequeue && end.cause.empty() && Clock::now() < until) {
    const control::JobState job = coordinator_->state();
    if (!std::any_of(job.workers.begin(), job.workers.end(), is_missed)) {
      return;
    }
    std::this_thread::sleep_for(milliseconds(10));
    take_troubles(end);
  }
}

// How far an attempt got whose workers told nobody.
void Supervisor::Impl::look_at_folder(std::filesystem::file_time_type begin, End& end) const {
  std::error_code error;
  const auto written = std::filesystem::last_write_time(run_ / "metrics.jsonl", error);
  end.opened = !error && written >= begin;
  end.last_step = newest_checkpoint_step(run_);
}

void Supervisor::Impl::record(int number, const Placement& placement, const std::string& started, const End& end) {
  Attempt attempt;
  attempt.number = number;
  attempt.started = started;
  attempt.ended = utc_now();
  attempt.ranks = placement.ranks;
  for (const Host& host : placement.hosts) {
    attempt.hosts.push_back(host.name);
  }
  attempt.slurm_job = request_.slurm ? request_.slurm->id : "";
  attempt.opened = end.opened;
  attempt.first_step = end.first_step;
  attempt.last_step = end.last_step;
  attempt.exit_code = end.exit_code;
  attempt.cause =
      end.exit_code == kExitRequeue ? (save_was_early_ ? "the job's time was almost up" : "asked to stop") : end.cause;
  attempt.detected_s = end.detected_s;
  attempt.recovered_s = end.recovered_s;
  if (const std::string problem = append_attempt(run_, attempt); !problem.empty()) {
    log_.warning("launch: {}", problem);
  }
}

int Supervisor::Impl::stop_between_attempts() {
  log_.info("launch: signal {}; not starting again, the newest checkpoint stays", stop_.number());
  return stop_.repeated() ? kExitFailed : stop_for_now(false);
}

// Waits, unless it is told to stop.
bool Supervisor::Impl::pause(milliseconds length) {
  const auto until = Clock::now() + length;
  while (Clock::now() < until && !stop_.requested()) {
    std::this_thread::sleep_for(milliseconds(kPollMs));
  }
  return !stop_.requested();
}

// What is left to do is done another time: a batch job goes back into the queue.
int Supervisor::Impl::stop_for_now(bool saved) {
  if (request_.slurm && request_.slurm->is_batch && stop_.number() != SIGINT) {
    const std::string problem = requeue(request_.slurm->id);
    log_.info("launch: {}Slurm job {} {}", saved ? "saved; " : "", request_.slurm->id,
              problem.empty() ? "goes back into the queue" : "is not put back into the queue: " + problem);
  }
  return kExitRequeue;
}

int Supervisor::Impl::run() {
  const int exit_code = run_attempts();
  // Another launcher's, where that one is at work in the run and this one was refused.
  const std::optional<Contact> left = read_contact_file(run_);
  if (left && left->address.token.hex() == contact_.address.token.hex()) {
    std::error_code ignored;
    std::filesystem::remove(contact_file(run_), ignored);
  }
  return exit_code;
}

int Supervisor::Impl::run_attempts() {
  control::Coordinator::Options options;
  const bool one_machine = request_.hosts.empty() && !request_.slurm;
  options.on_this_machine_only = one_machine;
  options.silence_ms = std::max(1, request_.config.comm.silence_s) * 1000;
  options.still_ms = request_.config.comm.stuck_s * 1000;
  options.start_ms =
      request_.config.comm.silence_s == 0 ? std::numeric_limits<int>::max() : request_.config.comm.timeout_s * 1000;
  options.on_trouble = [this](const std::vector<control::Trouble>& found) {
    const std::lock_guard lock(mutex_);
    troubles_.insert(troubles_.end(), found.begin(), found.end());
  };
  contact_.address.token = options.token;
  contact_.address.hosts = one_machine ? std::vector<std::string>{"127.0.0.1"} : own_addresses();
  coordinator_ = std::make_unique<control::Coordinator>(std::move(options));
  contact_.address.port = coordinator_->port();
  contact_.slurm_job = request_.slurm ? request_.slurm->id : "";

  int restarts = 0;
  int refusals = 0;
  int at_same_step = 0;
  std::int64_t failed_step = -1;
  milliseconds back_off{0};
  for (int number = 1;; ++number) {
    const Placement placement = choose_hosts(number == 1);
    if (stop_.requested()) {
      return stop_between_attempts();
    }
    if (placement.ranks == 0) {
      // A network that is down, perhaps: it may come back.
      log_.warning("launch: none of the job's {} hosts can be used; asking again", request_.hosts.size());
      back_off = next_back_off(back_off);
      if (restarts++ >= request_.max_restarts) {
        log_.error("launch: none of the job's hosts can be used; --max-restarts allows no more");
        return kExitFailed;
      }
      if (!pause(back_off)) {
        return stop_between_attempts();
      }
      continue;
    }
    const std::string started = utc_now();
    logs_.begin_attempt(
        fmt::format("attempt {} on {} rank{}, {}", number, placement.ranks, placement.ranks == 1 ? "" : "s", started));
    const End end = attempt(number, placement);
    record(number, placement, started, end);
    resume_ = end.opened ? "auto" : resume_;
    ever_opened_ |= end.opened;
    if (stop_.repeated()) {
      return kExitFailed;
    }
    if (end.cause.empty()) {
      return end.exit_code == kExitRequeue ? stop_for_now(true) : end.exit_code;
    }
    if (stop_sent_) {
      log_.error("launch: failed while it was stopping: {}; the newest checkpoint stays", end.cause);
      return stop_for_now(false);
    }
    const bool was_good_before = end.refused && ever_opened_;
    refusals = was_good_before ? refusals + 1 : 0;
    if ((end.again_is_useless && !was_good_before) || refusals >= kMostRefusals) {
      log_.error("launch: {}", end.cause);
      return end.refused ? kExitUsage : kExitFailed;
    }
    // What keeps ranks from coming up may pass: a host that reboots, a file system that is not mounted yet.
    const bool is_telling = (end.opened || end.was_told) && !was_good_before;
    at_same_step = !is_telling ? 0 : end.last_step == failed_step ? at_same_step + 1 : 1;
    failed_step = end.last_step;
    if (at_same_step >= kSameStep) {
      log_.error("launch: failed {} times after step {}: {}; starting again would not help", at_same_step,
                 end.last_step, end.cause);
      return kExitFailed;
    }
    if (restarts >= request_.max_restarts) {
      log_.error("launch: failed after step {}: {}; {} restart{} made, --max-restarts allows no more", end.last_step,
                 end.cause, restarts, restarts == 1 ? "" : "s");
      return kExitFailed;
    }
    ++restarts;
    const bool progressed = end.last_step > end.first_step;
    back_off = progressed ? milliseconds(0) : next_back_off(back_off);
    log_.warning("launch: failed after step {}: {}; starting again (restart {} of at most {})", end.last_step,
                 end.cause, restarts, request_.max_restarts);
    recovering_ = true;
    // A rank that cannot be reached ends itself when its lease runs out; until then it might still write.
    if (!pause(std::max(back_off, milliseconds(end.had_stranger ? 1'000 : 0)))) {
      return stop_between_attempts();
    }
  }
}

Supervisor::Supervisor(LaunchRequest request, StopSignal& stop, Log& log)
    : impl_(std::make_unique<Impl>(std::move(request), stop, log)) {}
Supervisor::~Supervisor() = default;

int Supervisor::run() { return impl_->run(); }

}  // namespace lockstep
