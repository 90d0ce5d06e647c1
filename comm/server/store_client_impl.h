// The inside of a StoreClient. Calls are in store_client_calls.cpp, connections and how they are made again in
// store_client_links.cpp, frames in store_client_frames.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/server/connection.h"
#include "comm/server/store_client.h"

namespace lockstep::server {

// Runs on the client's thread but for what is marked.
class StoreClient::Impl {
 public:
  using Clock = Connection::Clock;

  explicit Impl(Options options);  // the caller's thread
  ~Impl();                         // likewise
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // The caller's thread.
  [[nodiscard]] std::uint32_t rank() const { return rank_; }
  [[nodiscard]] std::uint32_t world() const { return world_; }
  [[nodiscard]] Mode mode() const { return options_.mode; }
  Position open(Open open);
  void start(std::uint64_t completed, const Arrays<const float>& values);
  Pulled pull(const Pull& pull, const Arrays<float>& into, const std::function<void()>& poll);
  [[nodiscard]] bool leads() const { return leads_; }
  void wish(Ending ending);
  void push(std::uint64_t step, float scale, std::span<const float> values);
  [[nodiscard]] double last_staleness() const;
  void close();
  void fail(const Error& error);

 private:
  template <typename T>
  using Awaitable = Connection::Awaitable<T>;

  // A server, and what it has not acknowledged yet.
  struct Link {
    std::size_t server = 0;
    ElementRange range;
    std::shared_ptr<Connection> connection;  // null while there is none
    std::optional<Opened> opened;            // over this connection
    bool was_initialized = false;
    bool is_durable = false;
    bool was_open = false;
    bool is_starting = false;
    std::optional<Gradient> push;
    bool is_pulling = false;
    server::Pulled pulled;    // of the last pull
    std::uint64_t stale = 0;  // of the last push
    bool is_closing = false;
    bool has_left = false;                   // in order
    Clock::time_point moved = Clock::now();  // when the server last did what it was asked
    int losses = 0;                          // of the connection, since then
  };

  // Runs it on the thread, and waits until `is_done`.
  void run(const std::function<void()>& begin, std::function<bool()> is_done, const std::function<void()>& poll = {});
  void settle();
  void pass_on(Ending wish);
  void fail_all(const Error& error);

  Awaitable<void> keep(Link& link);
  Awaitable<std::shared_ptr<Connection>> connect(Link& link);
  Awaitable<void> watch();

  Awaitable<void> receive(Link& link, std::shared_ptr<Connection> connection);
  Awaitable<void> receive_values(Link& link, std::shared_ptr<Connection> connection, std::uint32_t arrays);
  void take_opened(Link& link, const Opened& opened);
  void send_open(Link& link);
  void send_start(Link& link);
  void send_push(Link& link);
  void send_pull(Link& link);
  void send_values(Link& link, StoreArray array, std::span<const float> values);

  [[nodiscard]] bool waits(const Link& link) const {
    return (open_ && !link.opened) || link.is_starting || link.push || link.is_pulling || link.is_closing;
  }
  template <typename Condition>
  [[nodiscard]] bool all(const Condition& condition) const {
    return std::all_of(links_.begin(), links_.end(), condition);
  }

  const Options options_;
  const std::uint64_t id_;  // of this process
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> stay_ = boost::asio::make_work_guard(io_);
  std::vector<Link> links_;
  std::optional<Open> open_;
  std::atomic<bool> leads_ = false;
  bool has_reached_end_ = false;
  // What is under way, in the caller's memory.
  std::uint64_t started_after_ = 0;
  Arrays<const float> start_;
  std::span<const float> gradient_;
  Pull pull_;
  Arrays<float> into_;
  Ending wish_ = Ending::kNone;

  std::uint32_t rank_ = kNoRank;
  std::uint32_t world_ = 0;
  bool is_ending_ = false;
  std::function<bool()> is_done_;  // of what the caller waits for
  std::promise<void> done_;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace lockstep::server
