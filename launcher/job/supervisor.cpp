#include "launcher/job/supervisor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>
#include <utility>

#include "base/error.h"
#include "launcher/commands/command.h"
#include "launcher/job/attempt_runner.h"
#include "launcher/job/attempts.h"
#include "launcher/job/contact.h"
#include "launcher/job/host_reach.h"
#include "launcher/job/job_output.h"
#include "launcher/job/mpi_processes.h"
#include "launcher/job/restart_policy.h"
#include "launcher/job/served_commands.h"
#include "trainer/run_folder.h"

namespace lockstep {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kPollMs = 50;
// A start that leaves hosts out because of one question that went wrong would be a pity.
constexpr int kFirstQuestions = 3;

}  // namespace

std::vector<ChildCommand> first_commands(const LaunchRequest& request) {
  const Placement placement = placement_of(request, request.hosts);
  return request.servers > 0 ? served_commands(request, placement, request.resume)
                             : std::vector<ChildCommand>{mpi_command(request, placement, request.resume)};
}

class Supervisor::Impl {
 public:
  Impl(LaunchRequest request, StopSignal& stop, Log& log)
      : request_(std::move(request)),
        stop_(stop),
        log_(log),
        run_(run_folder(request_.config)),
        output_(run_, log),
        resume_(opened_before(request_.slurm, run_) ? "auto" : request_.resume),
        policy_(request_.max_restarts, opened_before(request_.slurm, run_)),
        runner_(request_, stop, log, output_, policy_) {}

  int run();

 private:
  [[nodiscard]] Placement choose_hosts(bool is_first);
  [[nodiscard]] int run_attempts();
  [[nodiscard]] int stop_for_now(bool saved);
  [[nodiscard]] int stop_between_attempts();
  [[nodiscard]] bool pause(milliseconds length);
  [[nodiscard]] RestartPolicy::Verdict judge(const AttemptEnd& end);
  void record(int number, const Placement& placement, const std::string& started, const AttemptEnd& end);

  const LaunchRequest request_;
  StopSignal& stop_;
  Log& log_;
  const std::filesystem::path run_;
  JobOutput output_;
  std::string resume_;  // of the next attempt
  RestartPolicy policy_;
  AttemptRunner runner_;
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

void Supervisor::Impl::record(int number, const Placement& placement, const std::string& started,
                              const AttemptEnd& end) {
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
  attempt.cause = end.exit_code == kExitRequeue
                      ? (runner_.save_was_early() ? "the job's time was almost up" : "asked to stop")
                      : end.cause;
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
  if (left && left->address.token.hex() == runner_.contact().address.token.hex()) {
    std::error_code ignored;
    std::filesystem::remove(contact_file(run_), ignored);
  }
  return exit_code;
}

RestartPolicy::Verdict Supervisor::Impl::judge(const AttemptEnd& end) {
  if (end.verdict) {
    return {end.verdict, end.cause};
  }
  return policy_.after("", {.cause = end.cause,
                            .step = end.last_step,
                            .progressed = end.last_step > end.first_step,
                            .again_is_useless = end.again_is_useless,
                            .refused = end.refused,
                            .is_telling = end.opened || end.was_told,
                            .is_counted = end.is_counted});
}

int Supervisor::Impl::run_attempts() {
  for (int number = 1;; ++number) {
    const Placement placement = choose_hosts(number == 1);
    if (stop_.requested()) {
      return stop_between_attempts();
    }
    RestartPolicy::Verdict verdict;
    if (placement.ranks == 0) {
      verdict = policy_.without_hosts(request_.hosts.size());
    } else {
      const std::string started = utc_now();
      output_.begin_attempt(
          fmt::format("attempt {} on {} rank{}, {}", number, placement.ranks, placement.ranks == 1 ? "" : "s", started),
          placement.ranks > 1);
      const AttemptEnd end = runner_.run(number, placement, resume_);
      if (end.opened) {
        resume_ = "auto";
        policy_.note_opened();
      }
      // What was refused before the job had opened the run is none of the run's attempts.
      if (!end.refused || policy_.ever_opened()) {
        record(number, placement, started, end);
      }
      if (stop_.repeated()) {
        log_.error("launch: {}; the newest checkpoint stays", end.cause.empty() ? "a second signal" : end.cause);
        return kExitFailed;
      }
      if (end.cause.empty()) {
        return end.exit_code == kExitRequeue ? stop_for_now(true) : end.exit_code;
      }
      if (runner_.stop_sent()) {
        log_.error("launch: failed while it was stopping: {}; the newest checkpoint stays", end.cause);
        return stop_for_now(false);
      }
      verdict = judge(end);
      runner_.note_failure();
      // A rank that cannot be reached ends itself when its lease runs out; until then it might still write.
      verdict.pause = std::max(verdict.pause, milliseconds(end.had_stranger ? 1'000 : 0));
    }
    if (verdict.exit_code) {
      log_.error("launch: {}", verdict.text);
      return *verdict.exit_code;
    }
    log_.warning("launch: {}", verdict.text);
    if (!pause(verdict.pause)) {
      return stop_between_attempts();
    }
  }
}

Supervisor::Supervisor(LaunchRequest request, StopSignal& stop, Log& log)
    : impl_(std::make_unique<Impl>(std::move(request), stop, log)) {}
Supervisor::~Supervisor() = default;

int Supervisor::run() { return impl_->run(); }

}  // namespace lockstep
