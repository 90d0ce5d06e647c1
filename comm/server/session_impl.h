// What a session consists of. Joining a group is in session_join.cpp, calls in session_calls.cpp, deadlines and the end
// in session_watch.cpp.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/server/operation.h"
#include "comm/server/session.h"
#include "comm/server/shared_memory.h"

namespace lockstep::server {

// Runs on the session's thread but for what is marked.
class Session::Impl {
 public:
  using Clock = Connection::Clock;

  explicit Impl(Options options);  // the caller's thread
  ~Impl() {
    if (thread_.joinable()) {
      io_.stop();
      thread_.join();
    }
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // The caller's thread.
  [[nodiscard]] std::uint32_t rank() const { return rank_; }
  [[nodiscard]] std::uint32_t world() const { return world_; }
  Work sum(std::string name, BufferView data, ElementRange wanted, Wire wire);
  Work gather(std::string name, std::span<std::byte> bytes, std::vector<ElementRange> owned);
  [[nodiscard]] std::shared_ptr<OwnMemory> share(std::size_t size_bytes);
  void take_back(const std::shared_ptr<OwnMemory>& memory);
  void check() const;
  [[nodiscard]] bool may_rejoin() const;
  void close();
  void leave();

 private:
  template <typename T>
  using Awaitable = Connection::Awaitable<T>;
  // A group that is over before this worker was in it.
  class Lost : public Error {
   public:
    using Error::Error;
  };

  // Runs it on the thread, and waits for it.
  void wait_for(Awaitable<void> run);
  using Queue = void (Impl::*)(const std::shared_ptr<Operation>&);
  Work start(const std::shared_ptr<Operation>& operation, Queue queue);

  Awaitable<void> join_group();
  Awaitable<void> connect_all(Clock::time_point deadline);
  void disconnect();
  Awaitable<void> connect(std::size_t server, Clock::time_point deadline);
  Awaitable<void> introduce(std::size_t server);
  Awaitable<void> receive(std::size_t server, std::shared_ptr<Connection> connection);
  Awaitable<void> receive_data(std::size_t server, FrameHeader header);
  Awaitable<void> watch();
  void watch_servers(Clock::time_point now);
  void watch_calls(Clock::time_point now);
  Awaitable<void> say_bye();
  enum class Job { kOver, kGoesOn };
  Awaitable<void> end_session(Error error, Job job);
  Awaitable<void> end_early();
  void queue_sum(const std::shared_ptr<Operation>& operation);
  void queue_gather(const std::shared_ptr<Operation>& operation);
  void queue_pieces(const std::shared_ptr<Operation>& operation, std::size_t server, const FrameHeader& header,
                    ElementRange range);
  struct Memory {
    std::shared_ptr<OwnMemory> own;
    std::vector<bool> is_used;  // by server
  };
  void tell_near_servers(const SharedMemory& memory);
  // What holds all of `data` and is used by this server; null for none.
  [[nodiscard]] const Memory* shared_memory_of(const BufferView& data, std::size_t server) const;
  [[nodiscard]] static std::span<const std::byte> encode_piece(const Operation& operation, ElementRange piece,
                                                               std::vector<std::byte>& memory);
  void finish_if_done(const std::shared_ptr<Operation>& operation);
  void ask_who(const Operation& operation, Clock::duration waited);
  // Ends the session, once; before it has begun, only this attempt to join a group.
  void fail_session(const Error& error, Job job);

  const Options options_;
  const std::shared_ptr<Outcome> outcome_ = std::make_shared<Outcome>();
  std::uint64_t last_call_ = 0;  // the caller's
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> stay_ = boost::asio::make_work_guard(io_);
  std::vector<std::shared_ptr<Connection>> connections_;  // one a server
  std::vector<bool> has_said_bye_;
  std::vector<bool> greets_;      // by server: a sign of life is on its way
  std::optional<Lost> lost_;      // the group, on the way into it
  std::optional<Error> refusal_;  // the job with it
  bool is_in_ = false;            // a group, with all servers
  bool has_near_server_ = false;  // with which memory is shared; set before the caller sees this session
  boost::asio::steady_timer bye_came_{io_};
  std::map<std::uint64_t, std::shared_ptr<Operation>> operations_;        // by call
  std::map<const void*, std::shared_ptr<std::vector<float>>> residuals_;  // by buffer
  std::vector<std::vector<std::byte>> outgoing_;  // by server: a piece on its way, as it travels
  std::vector<std::vector<std::byte>> incoming_;
  std::map<std::uint64_t, Memory> memories_;    // by number
  Clock::time_point data_came_ = Clock::now();  // signs of life are no data
  Clock::time_point data_went_ = Clock::now();
  Clock::time_point watched_ = Clock::now();
  Clock::time_point heard_from_ = Clock::now();  // silence counts from here on
  std::optional<Clock::time_point> asked_who_;
  bool failing_ = false;         // or closed: no call begins any more
  std::exception_ptr ended_by_;  // once the connections are closed
  std::uint32_t rank_ = 0;
  std::uint32_t world_ = 0;
  std::uint64_t group_ = 0;
  const std::shared_ptr<std::atomic<std::uint64_t>> newest_group_;
  std::thread thread_;
};

}  // namespace lockstep::server
