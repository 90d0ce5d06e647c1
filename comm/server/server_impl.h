// The inside of a Server, on a thread of its own: connections (server.cpp), which workers train together
// (server_groups.cpp), and what ends that (server_ends.cpp).
#pragma once

#include <algorithm>
#include <condition_variable>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/server/block.h"
#include "comm/server/connection.h"
#include "comm/server/group.h"
#include "comm/server/listener.h"
#include "comm/server/server.h"
#include "comm/server/shared_memory.h"

namespace lockstep::server {

// How long workers have to take the last frame before they are cut off.
inline constexpr std::chrono::milliseconds kFarewell{1'000};

// Everything below the first functions runs on the thread.
class Server::Impl {
 public:
  explicit Impl(Options options);
  ~Impl() {
    io_.stop();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] std::uint16_t port() const { return listener_->port(); }
  [[nodiscard]] bool has_begun() const {
    const std::lock_guard lock(mutex_);
    return has_begun_;
  }
  [[nodiscard]] bool has_workers() const {
    const std::lock_guard lock(mutex_);
    return has_workers_;
  }
  [[nodiscard]] std::optional<End> wait_for_end(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, time, [this] { return end_.has_value(); });
    return end_;
  }
  void end(const std::string& cause) {
    boost::asio::post(io_, [this, cause] { finish(Error(ErrorCode::kPeerLost, cause)); });
  }

 private:
  using Clock = Connection::Clock;
  template <typename T>
  using Awaitable = boost::asio::awaitable<T>;

  // A worker with a connection. It waits for a group, is in one, or has been told that its group is over.
  struct Worker {
    Hello hello;
    std::string name;  // "rank 1 (host node07, process 4711)", without the rank while it has none
    std::shared_ptr<Connection> connection;
    std::shared_ptr<Account> account;
    std::chrono::milliseconds patience{0};
    Clock::time_point came;
    Clock::time_point reads_since;  // the connection is being read
    bool is_read = false;
    std::uint64_t group = 0;                     // the one that it is or was in
    bool greets = false;                         // a sign of life is on its way to it
    bool is_dismissed = false;                   // its group or its job is over, or it is refused
    std::shared_ptr<Group::Member> member = {};  // of group_
    std::map<std::uint64_t, std::shared_ptr<const OthersMemory>> memories = {};  // by number
    bool is_told_of_memory = false;                                              // that cannot be had
  };

  Awaitable<void> serve(std::shared_ptr<Connection> connection, std::vector<std::byte> hello);
  Awaitable<void> serve_worker(std::shared_ptr<Worker> worker);
  Awaitable<void> receive(std::shared_ptr<Worker> worker);
  Awaitable<void> receive_data(std::shared_ptr<Worker> worker, FrameHeader header);
  Awaitable<void> watch();
  std::shared_ptr<Worker> admit(const std::shared_ptr<Connection>& connection, const Hello& hello);
  [[nodiscard]] static std::shared_ptr<Block> block_at(const Worker& worker, const Place& place,
                                                       const FrameHeader& header);
  void share(Worker& worker, const SharedMemory& memory);
  void handle(Worker& worker, const FrameHeader& header, std::span<const std::byte> payload);
  void blame(Worker& worker, const FrameHeader& header, const Who& who);

  [[nodiscard]] bool leads() const { return options_.part == 0; }
  [[nodiscard]] std::size_t wanted() const { return static_cast<std::size_t>(options_.workers); }
  [[nodiscard]] std::size_t fewest() const {
    return options_.min_workers > 0 ? static_cast<std::size_t>(options_.min_workers) : wanted();
  }
  [[nodiscard]] std::vector<std::shared_ptr<Worker>> guests() const;  // who wait, in the order in which they came
  void seat_guests();
  void seat_as_led();
  void see_to_guests();
  void see_to_latecomers();
  void form(const std::vector<std::shared_ptr<Worker>>& workers, std::uint64_t id);
  [[nodiscard]] std::string missing_worker() const;
  void lose(const Worker& worker, const std::string& why);
  void end_group(const Error& error);
  void refuse(Worker& worker, const std::string& why);
  void say_refused(const std::string& whom, const std::string& why);
  void dismiss(Worker& worker, FrameType type, const Error& error);
  void look_after_workers(Clock::time_point now);
  void tell_late(Clock::time_point now);
  void finish(const Error& error);
  Awaitable<void> cut_off(std::shared_ptr<Connection> connection);
  Awaitable<void> close_all(End end);
  void say(LogLevel level, const std::string& text) const {
    if (options_.say) {
      options_.say(level, text);
    }
  }

  const Options options_;
  boost::asio::io_context io_;
  std::optional<Listener> listener_;
  int refusals_ = 0;
  std::list<std::shared_ptr<Worker>> workers_;  // with a connection, in the order in which they came
  std::shared_ptr<Group> group_;
  std::uint64_t last_group_ = 0;
  std::size_t last_world_ = 0;
  std::size_t left_ = 0;                          // workers of that group that left on purpose
  std::optional<Clock::time_point> waits_since_;  // for a group
  std::optional<std::size_t> grows_to_;           // workers, for which the last group ended
  std::optional<Error> loss_;                     // what ended the last group, until there is another
  bool over_ = false;
  std::optional<Error> cause_;  // unless it ended in order
  Clock::time_point late_told_ = Clock::now();

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  bool has_begun_ = false;
  bool has_workers_ = false;
  std::optional<End> end_;
  std::thread thread_;
};

}  // namespace lockstep::server
