// The clock and the conscience of every wait: deadlines, the processes of this host, and what other ranks report.
//
// A rank that waits cannot tell from its own wait who is to blame: the rank it waits for may be waiting itself. So
// ranks tell each other, over a communicator of their own, in messages of a few bytes that flow only when something is
// slow:
//   waiting     "I am in call number 812 and waiting", once a call, after half the timeout or as soon as another rank
//   says so timed out   "I gave up on rank 3"; lost: "rank 3 is gone"; left: "I destroyed my communicator after call
//   812"
// At the deadline, the ranks that never said they were waiting are the ones that keep the others waiting. Who receives
// one of the last three fails with the same culprit, so all ranks of a job name the same one.
//
// Used by one thread at a time. After an Error only flush() may be called.
#pragma once

#include <mpi.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/mpi/peers.h"

namespace lockstep::mpi {

class Watch {
 public:
  using Clock = std::chrono::steady_clock;

  struct Settings {
    int timeout_ms = 0;
    std::function<void()> sign_of_life;  // called when a wait gets longer than a few microseconds
    std::function<bool()> is_abandoned;  // true: the communicator is being destroyed, waits shall end
  };

  // Collective over `world`, whose messages it keeps apart by a duplicate.
  Watch(MPI_Comm world, const Peers& peers, Settings settings);
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch() = default;  // the duplicate is freed by close(), which is collective

  // A call of the Communicator starts; the same calls in the same order on every rank. `name` and `unit` outlive it.
  void begin_call(std::string_view name, std::size_t amount = 0, std::string_view unit = {});
  [[nodiscard]] const Peers& peers() const { return peers_; }
  // Of the last begin_call(), for errors: "all_reduce_sum of 1000 f32".
  [[nodiscard]] std::string call_name() const;

  // Between calls: throws when another rank is gone, has left or has failed. Costs a few microseconds.
  void check_peers();

  // Tells every rank that this one ends the group. Never throws.
  void leave();
  // Gives the messages to the other ranks a moment to get on their way. Never throws.
  void flush();
  // Collective, after a barrier.
  void close();

 private:
  friend class Wait;

  enum class NoticeKind : std::int32_t { kWaiting, kTimedOut, kLost, kLeft };
  struct Notice {
    NoticeKind kind = NoticeKind::kWaiting;
    std::int32_t culprit = -1;
    std::uint64_t call = 0;
  };
  struct Sent {
    Notice notice;
    std::vector<MPI_Request> requests;
  };
  static constexpr int kNobody = -1;

  // The slow part of a wait that began at `since` for `awaited` (kNobody: any rank). Throws.
  void look(Clock::time_point since, int awaited);
  void receive_notices();
  void check_processes(Clock::time_point now);
  void announce_waiting();
  void send_to_all(Notice notice);
  [[noreturn]] void fail_timeout(Clock::duration waited, int awaited);
  [[noreturn]] void fail_with_notice(const Notice& notice, int sender);

  const Peers& peers_;
  const Settings settings_;
  MPI_Comm notices_ = MPI_COMM_NULL;
  std::uint64_t call_ = 0;
  std::string_view name_;
  std::size_t amount_ = 0;
  std::string_view unit_;  // empty: the call has no amount
  std::uint64_t last_announced_call_ = 0;
  std::vector<std::uint64_t> waiting_call_;  // by rank: the latest call it said it was waiting in
  // A rank that left after a call in which this one still is: that call will end well, the next one cannot.
  std::optional<std::pair<Notice, int>> left_;
  Clock::time_point last_process_check_;
  std::deque<Sent> sent_;
};

// One wait. Usage: for (Wait wait(watch, rank); !arrived();) sleep(wait.next_sleep());
class Wait {
 public:
  // `awaited` is the rank whose message or flag is missing, or -1 when it may be any.
  Wait(Watch& watch, int awaited);

  // Spins for some microseconds, then gives the core away a number of times, and from then on returns how long to sleep
  // before the next look (zero before). Throws Error(kTimeout, kPeerLost), naming the culprit.
  [[nodiscard]] std::chrono::microseconds next_sleep();

 private:
  Watch& watch_;
  const int awaited_;
  Watch::Clock::time_point since_;  // the end of the spinning
  Watch::Clock::time_point last_look_;
  int looks_ = 0;
};

// Waits for one request, which is MPI_REQUEST_NULL afterwards.
void wait_for(MPI_Request& request, Watch& watch, int awaited, MPI_Status* status = MPI_STATUS_IGNORE);

}  // namespace lockstep::mpi
