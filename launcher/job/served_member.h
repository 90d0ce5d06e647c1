// A worker or a parameter server of a job, from its first start to its end, over all processes that have been it.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/job/host_search.h"
#include "launcher/job/job_output.h"
#include "launcher/job/job_process.h"

namespace lockstep {

struct ServedMember {
  using Clock = std::chrono::steady_clock;

  // Why it is to be started again.
  struct Loss {
    std::string cause = {};
    Clock::time_point noticed = {};
    double detected_s = 0;
    bool was_told = false;                      // by itself
    bool is_stranger = false;                   // it may still be running, where it cannot be reached
    std::optional<Clock::time_point> due = {};  // when it is started again, once that is decided
    std::optional<HostSearch> new_host = {};    // where
  };

  std::string name;  // "rank 3", "server 1"
  bool is_server = false;
  int number = 0;                            // the rank, or the server's part from 0
  std::string host;                          // empty: this machine
  std::unique_ptr<JobProcess> process = {};  // while it runs
  int port = 0;                              // of a server; 0 as long as it has not said that it listens
  std::string last_line = {};                // of what it wrote for people
  Clock::time_point started_at = {};
  std::int64_t step_at_start = 0;  // completed by the job
  std::optional<Clock::time_point> ended_at = {};
  int exit_code = 0;      // once it has ended
  bool is_done = false;   // it ended well
  bool has_left = false;  // it has said that it ends, and does
  std::optional<Loss> loss = {};
  std::optional<Clock::time_point> to_be_killed = {};

  // `step`: completed by the job until now. Throws what JobProcess's constructor throws.
  void start(const JobSurroundings& job, const std::vector<std::string>& arguments,
             std::map<std::string, std::string> variables, std::int64_t step);
  // Hands on what the process has written, kills it when that is due, and notes its end.
  void follow(JobOutput& output);

  // HOST:PORT of a server.
  [[nodiscard]] std::string address() const;
  // "rank 3 (host n4)"
  [[nodiscard]] std::string name_and_host() const { return host.empty() ? name : name + " (host " + host + ")"; }
  // A signal ended it, or the connection to its host broke, rather than its own decision.
  [[nodiscard]] bool was_ended() const { return exit_code >= 128; }
  // "server 1 (host n4) was ended by signal 9"
  [[nodiscard]] std::string end_text() const;

 private:
  void hand_on(JobOutput& output, Child::Stream stream, const std::string& text);
};

}  // namespace lockstep
