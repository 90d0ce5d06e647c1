// Who of a job's workers is well: what the coordinator concludes from heartbeats and their absence. No sockets, no
// clock of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "comm/control/message.h"

namespace lockstep::control {

enum class TroubleKind : std::uint8_t {
  kGone,     // its connection ended without a farewell: the process died
  kSilent,   // no sign of life: stopped, or cut off
  kStill,    // it answers, but its work does not move: hung in a system call, say
  kMissing,  // never came up
  kFailed,   // it said that it failed; whether the others can go on is theirs to find out
  kLeft,     // it said that it ends, not well and for nothing of its own: asked to stop, or without those it needs
};

struct Trouble {
  TroubleKind kind = TroubleKind::kGone;
  bool fatal = true;  // the attempt cannot go on
  bool lost = true;   // the worker is no more, or is to be ended; otherwise a warning, or what it said itself
  int rank = 0;
  std::string host = {};  // empty: not known
  std::int64_t step = 0;  // completed by any rank until then
  std::string text = {};  // "rank 3 (host n3, process 411) has not answered for 5.0 s; last seen in step 8: optimizer"
  double silent_seconds = 0;  // from its last sign of life, or its last progress, until it was noticed
  int exit_code = 0;          // of kFailed and kLeft
  bool again_is_useless = false;
};

class Roster {
 public:
  using Clock = std::chrono::steady_clock;
  using Milliseconds = std::chrono::milliseconds;

  struct Options {
    int world = 1;
    int attempt = 1;
    Milliseconds silence{5'000};    // a worker is named at the latest this long after its last sign of life
    Milliseconds still{300'000};    // how long a worker's work may stand still before the attempt is ended for it
    Milliseconds start{600'000};    // how long workers may take to come up
    Milliseconds period{100};       // how often check() is called
    bool replaces_workers = false;  // one that is lost is not fatal: another takes its place; kLeft is told
    std::string own_host = {};      // where this process runs
    std::uint64_t own_namespace = 0;
  };
  Roster(const Options& options, Clock::time_point now);

  // False: not one of this attempt's workers, or a rank that is there already.
  [[nodiscard]] bool hello(const Hello& hello, Clock::time_point now);
  void heartbeat(int rank, const Heartbeat& heartbeat, Clock::time_point now);
  void farewell(int rank, const Farewell& farewell, Clock::time_point now);
  // The connection ended.
  void closed(int rank, Clock::time_point now);
  // Another process is to be this rank, and has `start` to come up. The one before is turned away from now on.
  void replace(int rank, Clock::time_point now);

  // What is new since the last call. Each worker's trouble is told once, a warning before it is fatal twice.
  [[nodiscard]] std::vector<Trouble> check(Clock::time_point now);

  [[nodiscard]] JobState state(Clock::time_point now) const;
  [[nodiscard]] std::int64_t completed_step() const;
  // All workers have ended well.
  [[nodiscard]] bool all_ended() const;
  // What all of them ended with; nothing while one has not ended, or when they differ.
  [[nodiscard]] std::optional<int> common_exit_code() const;

 private:
  struct Worker {
    Hello hello;
    Heartbeat last;
    Clock::time_point heard;
    Clock::time_point moved;
    double cpu_seconds_then = 0;  // when it moved
    bool connected = true;
    bool ended = false;
    bool told = false;
    bool warned = false;
    Farewell farewell;
    Clock::time_point closed;
  };
  [[nodiscard]] std::string name_of(const Worker& worker) const;
  [[nodiscard]] bool process_is_gone(const Worker& worker) const;
  [[nodiscard]] std::vector<Trouble> check_connections(Clock::time_point now);
  [[nodiscard]] Trouble trouble(const Worker& worker, TroubleKind kind, const std::string& what) const;

  Options options_;
  struct Process {
    std::string host;
    std::int64_t number = 0;
    std::uint64_t number_namespace = 0;
    friend bool operator==(const Process&, const Process&) = default;
  };
  [[nodiscard]] static Process process_of(const Hello& hello) {
    return {hello.host, hello.process, hello.process_namespace};
  }

  Clock::time_point checked_;
  std::map<int, Worker> workers_;
  std::vector<Clock::time_point> awaited_since_;  // by rank
  std::vector<Process> replaced_;
  bool told_missing_ = false;
};

}  // namespace lockstep::control
