#include "launcher/job/served_processes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "base/error.h"
#include "launcher/commands/command.h"
#include "launcher/job/served_commands.h"

namespace lockstep {
namespace {

using std::chrono::milliseconds;

// What the coordinator takes to say what it knows of a worker whose end was seen here, and what a process takes that
// has said that it ends.
constexpr milliseconds kPatience{2'000};
// A rank that cannot be reached ends itself when its lease runs out.
constexpr milliseconds kStrangersPause{1'000};

// Heartbeats come ten times in comm.silence_s.
milliseconds delay_of_heartbeats(const CommConfig& config) { return milliseconds(2 * 100 * config.silence_s + 100); }

std::unique_ptr<server::Pulse> make_pulse(const std::string& token, const CommConfig& config, Log& log) {
  if (config.silence_s == 0) {
    return nullptr;
  }
  server::Pulse::Options options;
  options.token = control::JobToken::from_hex(token);
  options.period = milliseconds(100 * config.silence_s);
  try {
    options.tls = config.tls_ca.empty() ? nullptr : server::TlsContext::of_worker(config.tls_ca);
  } catch (const Error& error) {
    log.warning("launch: servers that hang will not be noticed from here: {}", error.what());
    return nullptr;
  }
  return std::make_unique<server::Pulse>(std::move(options));
}

// A server would wait for its workers first.
void end_one(JobProcess& process, bool is_server) {
  if (is_server) {
    process.kill();
  } else {
    process.signal(SIGTERM);
  }
}

}  // namespace

ServedProcesses::ServedProcesses(Surroundings surroundings, Plan plan)
    : around_(std::move(surroundings)),
      plan_(std::move(plan)),
      job_(surroundings_of(around_.request, token_.token(), token_.file().string())),
      pulse_(make_pulse(token_.token(), around_.request.config.comm, around_.log)),
      recovery_(delay_of_heartbeats(around_.request.config.comm)) {
  const std::vector<std::string> server_hosts = hosts_of_servers(plan_.placement, around_.request.servers);
  for (std::size_t i = 0; i < server_hosts.size(); ++i) {
    members_.push_back({.name = fmt::format("server {}", i + 1),
                        .is_server = true,
                        .number = static_cast<int>(i),
                        .host = server_hosts[i]});
  }
  const std::vector<std::string> hosts = hosts_of_ranks(plan_.placement);
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
    members_.push_back({.name = fmt::format("rank {}", rank), .number = static_cast<int>(rank), .host = hosts[rank]});
  }
  for (ServedMember& member : members_) {
    if (member.is_server) {
      start(member);
    }
  }
}

ServedProcesses::~ServedProcesses() { record(recovery_.give_up()); }

void ServedProcesses::start(ServedMember& member) {
  const AttemptProgress progress = around_.progress();
  const int ranks = plan_.placement.ranks;
  if (member.is_server) {
    member.start(job_, server_command(around_.request, ranks, member.number, member.port), {}, progress.step);
    return;
  }
  std::vector<std::string> addresses;
  for (const ServedMember& other : members_) {
    if (other.is_server) {
      addresses.push_back(other.address());
    }
  }
  std::map<std::string, std::string> variables = worker_variables(member.number, ranks);
  variables.insert(plan_.variables.begin(), plan_.variables.end());
  member.start(job_,
               worker_command(around_.request, fmt::format("{}", fmt::join(addresses, ",")),
                              progress.opened ? "auto" : plan_.resume),
               std::move(variables), progress.step);
}

// Once all servers listen.
void ServedProcesses::start_workers() {
  const auto listens = [](const ServedMember& member) { return !member.is_server || member.port > 0; };
  if (workers_started_ || !goes_on() || !std::all_of(members_.begin(), members_.end(), listens)) {
    return;
  }
  workers_started_ = true;
  for (ServedMember& member : members_) {
    if (!member.is_server) {
      start(member);
    }
  }
}

void ServedProcesses::tend(int timeout_ms) {
  std::vector<const Child*> children;
  for (const ServedMember& member : members_) {
    if (member.process) {
      children.push_back(&member.process->child());
    }
  }
  Child::wait_for_output(children, timeout_ms);
  for (ServedMember& member : members_) {
    look_after(member);
  }
  find_fault();
  start_workers();
  for (ServedMember& member : members_) {
    if (goes_on() && !workers_gone_at_ && member.loss && !member.process) {
      bring_back(member);
    }
  }
  record(recovery_.note(around_.progress().step, Clock::now()));
  end_servers();
}

void ServedProcesses::look_after(ServedMember& member) {
  member.follow(around_.output);
  if (member.ended_at && !member.is_done && !member.loss && goes_on()) {
    judge_end(member);
  }
  if (member.is_server) {
    look_after_server(member);
  }
}

void ServedProcesses::look_after_server(ServedMember& member) {
  const CommConfig& config = around_.request.config.comm;
  if (!member.process || member.loss || !goes_on()) {
    if (pulse_) {
      pulse_->forget(member.number);
    }
    return;
  }
  if (member.port == 0) {
    if (Clock::now() - member.started_at > std::chrono::seconds(config.timeout_s)) {
      job_is_over(member.name_and_host() + " does not come up");
    }
    return;
  }
  if (!pulse_) {
    return;
  }
  if (!pulse_->is_watched(member.number)) {
    pulse_->watch(member.number, server::parse_addresses(member.address()).front());
  }
  const auto silence = pulse_->silence_of(member.number);
  if (silence && *silence > std::chrono::seconds(config.silence_s)) {
    const double seconds = std::chrono::duration<double>(*silence).count();
    lose(member, {.cause = fmt::format("{} has not answered for {:.1f} s", member.name_and_host(), seconds),
                  .detected_s = seconds,
                  .is_stranger = !is_here(member.host)});
  }
}

// What a process ended of that nobody has spoken of yet.
void ServedProcesses::judge_end(ServedMember& member) {
  if (!member.is_server && is_watched() && Clock::now() - *member.ended_at < kPatience) {
    return;  // the coordinator knows more
  }
  if (member.exit_code == kExitUsage) {
    Fault fault;
    fault.failure = {.cause = member.end_text(), .again_is_useless = true, .refused = true, .is_telling = false};
    fault_ = std::move(fault);
  } else if ((member.is_server || !is_watched()) && !member.was_ended()) {
    job_is_over(member.end_text());  // perhaps because of others
  } else {
    lose(member, {.cause = member.end_text()});
  }
}

bool ServedProcesses::take(const control::Trouble& trouble) {
  using control::TroubleKind;
  const auto is_it = [&](const ServedMember& each) { return !each.is_server && each.number == trouble.rank; };
  ServedMember& member = *std::find_if(members_.begin(), members_.end(), is_it);
  member.has_left |= trouble.kind == TroubleKind::kLeft || trouble.kind == TroubleKind::kFailed;
  if (is_over_ || fault_) {
    return true;
  }
  if (trouble.kind == TroubleKind::kMissing || (!trouble.lost && trouble.kind == TroubleKind::kStill)) {
    return false;
  }
  if (trouble.kind == TroubleKind::kLeft) {
    if (trouble.exit_code != kExitRequeue) {
      job_is_over(trouble.text);
    }
    return true;
  }
  if (trouble.again_is_useless) {
    Fault fault;
    fault.failure = {.cause = trouble.text,
                     .again_is_useless = true,
                     .refused = trouble.exit_code == kExitUsage,
                     .is_telling = true};
    fault_ = std::move(fault);
    return true;
  }
  lose(member, {.cause = trouble.text,
                .detected_s = trouble.silent_seconds,
                .was_told = trouble.kind == TroubleKind::kFailed,
                .is_stranger = trouble.kind == TroubleKind::kSilent && !is_here(trouble.host)});
  return true;
}

void ServedProcesses::lose(ServedMember& member, Loss loss) {
  if (member.loss || member.is_done) {
    return;
  }
  loss.noticed = Clock::now();
  // One that said itself what failed is on its way out.
  member.to_be_killed = loss.noticed + (loss.was_told ? kPatience : milliseconds(0));
  member.loss = std::move(loss);
}

// Workers on it are known by their own silence, where somebody listens.
void ServedProcesses::lose_host(const std::string& host) {
  for (ServedMember& member : members_) {
    if (member.host == host && (member.is_server || !is_watched())) {
      lose(member, {.cause = member.name_and_host() + " cannot be reached", .is_stranger = true});
    }
  }
}

void ServedProcesses::bring_back(ServedMember& member) {
  Loss& loss = *member.loss;
  if (!loss.due) {
    decide(member, loss);
  }
  const std::optional<std::string> host = goes_on() ? find_host(member, loss) : std::nullopt;
  if (!host || Clock::now() < *loss.due) {
    return;
  }
  recovery_.add({.attempt = plan_.attempt,
                 .time = utc_now(),
                 .process = member.name,
                 .host = *host,
                 .step = around_.progress().step,
                 .cause = loss.cause,
                 .detected_s = loss.detected_s},
                loss.noticed, Clock::now());
  member.host = *host;
  member.loss.reset();
  if (!member.is_server) {
    around_.coordinator.replace(member.number);
  }
  start(member);
}

void ServedProcesses::decide(const ServedMember& member, Loss& loss) {
  if (is_stopping_) {
    set_fault(loss, loss.cause);
    return;
  }
  const AttemptProgress progress = around_.progress();
  // Those that are lost together are one failure.
  const bool is_counted = !recovery_.is_open() || recovery_.has(member.name);
  const RestartPolicy::Verdict verdict =
      around_.policy.after(member.name, {.cause = loss.cause,
                                         .step = progress.step,
                                         .progressed = progress.step > member.step_at_start,
                                         .is_telling = progress.opened || loss.was_told,
                                         .is_counted = is_counted});
  if (verdict.exit_code) {
    set_fault(loss, verdict.text);
    fault_->exit_code = verdict.exit_code;
    return;
  }
  around_.log.warning("launch: {}", verdict.text);
  loss.due = Clock::now() + std::max(verdict.pause, loss.is_stranger ? kStrangersPause : milliseconds(0));
}

std::optional<std::string> ServedProcesses::find_host(const ServedMember& member, Loss& loss) {
  if (member.host.empty() || is_here(member.host)) {
    return member.host;
  }
  if (!loss.new_host) {
    std::vector<std::string> candidates = {member.host};
    for (const Host& host : around_.request.hosts) {
      if (!member.is_server && host.name != member.host && has_room(host.name)) {
        candidates.push_back(host.name);
      }
    }
    loss.new_host.emplace(std::move(candidates), job_);
  }
  const std::optional<std::string> found = Clock::now() < *loss.due ? std::nullopt : loss.new_host->result();
  if (!found) {
    return {};
  }
  loss.new_host.reset();
  if (*found == member.host) {
    return found;
  }
  lose_host(member.host);
  if (found->empty()) {
    set_fault(loss, loss.cause + "; no host can take it");
    return {};
  }
  return has_room(*found) ? found : std::nullopt;  // another may have taken it: asked again
}

bool ServedProcesses::has_room(const std::string& name) const {
  const std::vector<Host>& hosts = around_.request.hosts;
  const auto host = std::find_if(hosts.begin(), hosts.end(), [&](const Host& each) { return each.name == name; });
  const auto is_there = [&](const ServedMember& member) { return !member.is_server && member.host == name; };
  return host != hosts.end() && std::count_if(members_.begin(), members_.end(), is_there) < host->slots;
}

void ServedProcesses::job_is_over(const std::string& why) {
  if (goes_on()) {
    over_since_ = Clock::now();
    why_over_ = why;
  }
}

// Names what was lost, where a process has ended because of that.
void ServedProcesses::find_fault() {
  if (!over_since_ || fault_) {
    return;
  }
  Fault fault;
  fault.failure = {.cause = recovery_.causes(), .is_telling = false, .is_counted = !recovery_.is_open()};
  bool is_to_be_told_more = false;
  for (const ServedMember& member : members_) {
    const bool was_ended = !member.process && member.ended_at && !member.is_done && member.was_ended();
    if (!member.loss && !was_ended) {
      continue;
    }
    is_to_be_told_more |= !member.loss && !member.is_server && is_watched();
    fault.failure.cause += fault.failure.cause.empty() ? "" : "; ";
    fault.failure.cause += member.loss ? member.loss->cause : member.end_text();
    if (member.loss) {
      fault.detected_s = std::max(fault.detected_s, member.loss->detected_s);
      fault.failure.is_telling |= member.loss->was_told;
      fault.had_stranger |= member.loss->is_stranger;
    }
  }
  if ((is_to_be_told_more || fault.failure.cause.empty()) && Clock::now() - *over_since_ < kPatience) {
    return;
  }
  if (fault.failure.cause.empty()) {
    fault.failure.cause = why_over_;
  }
  fault_ = std::move(fault);
}

void ServedProcesses::set_fault(const Loss& loss, const std::string& cause) {
  Fault fault;
  fault.failure = {.cause = cause, .is_telling = loss.was_told, .is_counted = !loss.due.has_value()};
  fault.detected_s = loss.detected_s;
  fault.had_stranger = loss.is_stranger;
  fault_ = std::move(fault);
}

void ServedProcesses::record(const std::vector<Replacement>& replacements) {
  double longest = 0;
  for (const Replacement& replacement : replacements) {
    longest = std::max(longest, replacement.recovered_s);
    if (const std::string problem = append_replacement(around_.run, replacement); !problem.empty()) {
      around_.log.warning("launch: {}", problem);
    }
  }
  if (longest > 0) {
    around_.log.info("launch: training again {:.1f} s after the failure was noticed", longest);
  }
}

// Servers end by themselves when all workers have ended well. Otherwise nobody is left for them to serve.
void ServedProcesses::end_servers() {
  const auto works = [](const ServedMember& member) { return !member.is_server && member.process; };
  const bool has_ended_well = workers_started_ && std::all_of(members_.begin(), members_.end(), [](const auto& member) {
                                return member.is_server || member.is_done;
                              });
  if ((goes_on() && !has_ended_well) || std::any_of(members_.begin(), members_.end(), works)) {
    return;
  }
  if (!workers_gone_at_) {
    workers_gone_at_ = Clock::now();
  }
  const auto waited = Clock::now() - *workers_gone_at_;
  if (!servers_told_ && (!has_ended_well || waited > kPatience)) {
    servers_told_ = true;
    terminate();
  }
  if (waited > 2 * kPatience) {
    kill();
  }
}

std::optional<int> ServedProcesses::exit_code() {
  const auto runs = [](const ServedMember& member) { return member.process != nullptr; };
  const auto is_done = [](const ServedMember& member) { return member.is_server || member.is_done; };
  const bool all_done = workers_started_ && std::all_of(members_.begin(), members_.end(), is_done);
  if ((!is_over_ && !all_done) || std::any_of(members_.begin(), members_.end(), runs)) {
    return {};
  }
  const auto has_saved = [](const ServedMember& member) {
    return !member.is_server && member.exit_code == kExitRequeue;
  };
  if (!all_done) {
    return fault_ && fault_->failure.refused ? kExitUsage : kExitFailed;
  }
  return std::any_of(members_.begin(), members_.end(), has_saved) ? kExitRequeue : kExitDone;
}

void ServedProcesses::stop(bool by_signal) {
  is_stopping_ = true;
  for (ServedMember& member : members_) {
    if (by_signal && !member.is_server && member.process) {
      member.process->signal(SIGUSR1);
    }
  }
}

void ServedProcesses::end() {
  is_over_ = true;
  for (ServedMember& member : members_) {
    if (member.process && recovery_.has(member.name)) {
      member.process->kill();  // it was just started, and may not have heard of it
    } else if (member.process && member.has_left) {
      end_one(*member.process, member.is_server);  // it waits for others to speak first
    }
  }
}

void ServedProcesses::terminate() {
  for (ServedMember& member : members_) {
    if (member.process) {
      end_one(*member.process, member.is_server);
    }
  }
}

void ServedProcesses::kill() {
  for (ServedMember& member : members_) {
    if (member.process) {
      member.process->kill();
    }
  }
}

}  // namespace lockstep
