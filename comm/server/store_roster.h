// The workers of a server that holds weights: who is here, how far each has come, who may begin its next step, who
// leads, and when the job is over. Decides, and leaves it to StoreServer to act. Used by one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/server/connection.h"
#include "comm/server/store.h"
#include "comm/server/store_protocol.h"

namespace lockstep::server {

struct StoreWorker {
  using Clock = Connection::Clock;

  std::uint32_t rank = 0;
  std::string name;                        // "rank 1 (host node07, process 4711)"
  std::shared_ptr<Connection> connection;  // null: gone, or not here yet
  bool is_open = false;                    // the connection has opened the store
  std::uint64_t id = 0;                    // of the process
  std::chrono::milliseconds patience{10};
  Clock::time_point gone_since;
  bool has_joined = false;       // once
  bool has_reached_end = false;  // begins no step any more
  bool has_said_bye = false;
  std::optional<Pull> pull;  // not answered yet
  Clock::time_point pull_since;
  bool is_sending = false;      // the answer is on its way
  double usual_staleness = 0;   // updates of others between a pull and the gradient, of late
  std::vector<float> gradient;  // that comes in
  std::optional<Clock::time_point> slow_since;
  bool is_called_slow = false;

  [[nodiscard]] bool is_here() const { return connection != nullptr && is_open; }
  [[nodiscard]] bool is_at_end() const { return has_said_bye || has_reached_end; }
};

class StoreRoster {
 public:
  using Clock = StoreWorker::Clock;
  struct Options {
    int workers = 1;
    Mode mode = Mode::kBounded;
    bool names_lead = true;  // the first server does
    // How long a worker that is gone may take to come back before the job ends, or another one leads, without it.
    std::chrono::milliseconds rejoin{5'000};
  };
  explicit StoreRoster(const Options& options);

  // The store as it will be, once it is there. With `is_recovered` all workers have been here, and are expected back.
  void watch(const StoreState& state, bool is_recovered);
  void set_started() { is_started_ = true; }

  [[nodiscard]] std::vector<StoreWorker>& workers() { return workers_; }
  [[nodiscard]] std::uint64_t completed(const StoreWorker& worker) const { return state_->completed[worker.rank]; }
  [[nodiscard]] std::optional<std::uint32_t> lead() const { return lead_; }
  // A worker that led before the server was started again.
  void claim_lead(const StoreWorker& worker);
  // Names a worker that leads, if there is none any more. Returns true for one that takes over.
  bool elect();

  // That all workers end: the first wish counts.
  void take_wish(Ending wish) { wish_ = wish_ == Ending::kNone ? wish : wish_; }
  [[nodiscard]] Ending wish() const { return wish_; }

  [[nodiscard]] bool may_answer(const StoreWorker& worker) const;
  // Whom the pull of a worker waits for; null when for nobody in particular.
  [[nodiscard]] const StoreWorker* awaited_by(const StoreWorker& waiting) const;
  [[nodiscard]] std::uint64_t missing_joins() const;
  // Steps that have not been taken and, at the end, will not be.
  [[nodiscard]] std::uint64_t missing_steps() const;

  enum class Over { kNo, kOrderly, kDeserted };
  // kOrderly: all that are left have said that they are done. kDeserted: none is left, and none has come back.
  [[nodiscard]] Over is_over() const;

  // Tells `say` of workers that have been far behind for a while, and of those that are not any more.
  void look_for_slow_workers(const std::function<void(bool is_slow, const std::string& text)>& say);

 private:
  // Gone, but may come back: others do not lead or end without it yet.
  [[nodiscard]] bool is_missed(const StoreWorker& worker) const;
  // The one that has done the fewest steps, of those that count; null without any.
  [[nodiscard]] const StoreWorker* slowest() const;
  [[nodiscard]] const StoreWorker* fastest() const;

  const Options options_;
  std::vector<StoreWorker> workers_;  // by rank
  const StoreState* state_ = nullptr;
  bool is_started_ = false;
  Clock::time_point expected_until_ = {};  // after a recovery
  std::optional<std::uint32_t> lead_;
  Ending wish_ = Ending::kNone;
};

}  // namespace lockstep::server
