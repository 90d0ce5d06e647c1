// Ranks that add through parameter servers, and these servers: each a process of its own, here or on other hosts.
//
// Servers come up first and say where they listen. From then on a process that dies is started again by itself, a
// worker with the same rank, also on another of the job's hosts when its own does not answer, a server on the same
// port: its peers wait for it. The attempt cannot go on when a process ended because others were lost, or when what is
// lost has no host to go to. A worker that is silent, or whose work stands still, is killed and counts as dead, and so
// is a server that once answered, and does not for comm.silence_s.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "comm/control/coordinator.h"
#include "comm/server/pulse.h"
#include "launcher/job/job_output.h"
#include "launcher/job/launch_request.h"
#include "launcher/job/rank_processes.h"
#include "launcher/job/recovery_watch.h"
#include "launcher/job/served_member.h"
#include "launcher/job/token_folder.h"

namespace lockstep {

// How far an attempt has got.
struct AttemptProgress {
  bool opened = false;    // the run was
  std::int64_t step = 0;  // completed by any rank
};

class ServedProcesses final : public RankProcesses {
 public:
  // All outlive this.
  struct Surroundings {
    const LaunchRequest& request;
    control::Coordinator& coordinator;
    RestartPolicy& policy;
    JobOutput& output;
    Log& log;
    const std::filesystem::path& run;
    std::function<AttemptProgress()> progress;
  };
  struct Plan {
    int attempt = 1;
    Placement placement;
    std::string resume;
    std::map<std::string, std::string> variables;  // of workers
  };
  // Starts the servers. Throws what JobProcess's constructor throws.
  ServedProcesses(Surroundings surroundings, Plan plan);
  ~ServedProcesses() override;
  ServedProcesses(const ServedProcesses&) = delete;
  ServedProcesses& operator=(const ServedProcesses&) = delete;

  void tend(int timeout_ms) override;
  [[nodiscard]] std::optional<int> exit_code() override;
  [[nodiscard]] std::string name() const override { return "the job"; }
  void stop(bool by_signal) override;
  void end() override;
  void terminate() override;
  void kill() override;
  [[nodiscard]] bool take(const control::Trouble& trouble) override;
  [[nodiscard]] std::optional<Fault> fault() const override { return fault_; }

 private:
  using Clock = ServedMember::Clock;
  using Loss = ServedMember::Loss;

  void start(ServedMember& member);
  void start_workers();
  void look_after(ServedMember& member);
  void look_after_server(ServedMember& member);
  void judge_end(ServedMember& member);
  void lose(ServedMember& member, Loss loss);
  void lose_host(const std::string& host);
  void bring_back(ServedMember& member);
  // Whether and when it is started again.
  void decide(const ServedMember& member, Loss& loss);
  // Where it is started again. Nothing as long as that is not known, or after a fault.
  [[nodiscard]] std::optional<std::string> find_host(const ServedMember& member, Loss& loss);
  [[nodiscard]] bool has_room(const std::string& host) const;
  void job_is_over(const std::string& why);
  void find_fault();
  void set_fault(const Loss& loss, const std::string& cause);
  void record(const std::vector<Replacement>& replacements);
  void end_servers();
  // By the coordinator.
  [[nodiscard]] bool is_watched() const { return around_.request.config.comm.silence_s > 0; }
  // Whether anything is still to be started.
  [[nodiscard]] bool goes_on() const { return !is_over_ && !fault_ && !over_since_; }

  const Surroundings around_;
  const Plan plan_;
  const TokenFolder token_;
  const JobSurroundings job_;
  std::vector<ServedMember> members_;           // the servers, then the workers
  const std::unique_ptr<server::Pulse> pulse_;  // of the servers; null where they are not watched
  RecoveryWatch recovery_;
  bool workers_started_ = false;
  bool is_stopping_ = false;
  bool is_over_ = false;
  std::optional<Fault> fault_;
  // A process ended because of others, by its word: what these were will be known in a moment.
  std::optional<Clock::time_point> over_since_;
  std::string why_over_;
  std::optional<Clock::time_point> workers_gone_at_;
  bool servers_told_ = false;
};

}  // namespace lockstep
