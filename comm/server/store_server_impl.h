// The inside of a StoreServer, on a thread of its own: connections (store_server.cpp), what workers send that have
// opened the store (store_server_frames.cpp), how their pulls are answered (store_server_pulls.cpp), and what ends the
// job (store_server_ends.cpp).
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/server/connection.h"
#include "comm/server/listener.h"
#include "comm/server/store_journal.h"
#include "comm/server/store_roster.h"
#include "comm/server/store_server.h"

namespace lockstep::server {

// Everything below the first functions runs on the thread.
class StoreServer::Impl {
 public:
  explicit Impl(Options options);
  ~Impl() {
    io_.stop();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  [[nodiscard]] std::uint16_t port() const { return listener_.port(); }
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
  void stop() {
    boost::asio::post(io_, [this] {
      roster_.take_wish(Ending::kStopped);
      answer_pulls();
    });
  }
  void end(const std::string& cause) {
    boost::asio::post(io_, [this, cause] { finish(Error(ErrorCode::kPeerLost, cause)); });
  }

 private:
  using Clock = Connection::Clock;
  template <typename T>
  using Awaitable = Connection::Awaitable<T>;
  using Worker = StoreWorker;

  // What a pull is answered with: a copy, so that updates can go on while it is on its way.
  struct Image {
    std::uint64_t version = 0;
    std::vector<float> weights;
    std::vector<float> exp_avg;  // empty unless asked for
    std::vector<float> exp_avg_sq;
  };

  // A worker's connection, from its first frame to its last.
  Awaitable<void> serve(std::shared_ptr<Connection> connection, std::vector<std::byte> hello);
  Awaitable<void> introduce(std::shared_ptr<Connection> connection, Hello hello, Worker*& worker);
  Awaitable<Open> receive_open(std::shared_ptr<Connection> connection, std::chrono::milliseconds limit);
  Worker& admit(const std::shared_ptr<Connection>& connection, const Hello& hello);
  void open(Worker& worker, const std::shared_ptr<Connection>& connection, const Open& open);
  void make_store(const Open& open);
  void expect_same(const Worker& worker, const Open& open) const;
  void note_who_is_here();
  void leave(Worker& worker, const std::shared_ptr<Connection>& connection, const std::string& why);

  // Frames of a worker that has opened the store.
  Awaitable<void> serve_frames(Worker& worker, std::shared_ptr<Connection> connection);
  Awaitable<void> receive_start(Worker& worker, std::shared_ptr<Connection> connection, Start start);
  Awaitable<void> receive_gradient(Worker& worker, std::shared_ptr<Connection> connection, Gradient gradient);
  Awaitable<void> receive_values(std::shared_ptr<Connection> connection, StoreArray array, std::span<float> into);
  void handle(Worker& worker, const FrameHeader& header, std::span<const std::byte> payload);
  void apply(Worker& worker, const Gradient& gradient);
  void send_opened(Worker& worker);

  // Pulls.
  void answer_pulls();
  void answer(Worker& worker);
  void send_values(Worker& worker, const std::shared_ptr<const Image>& image, StoreArray array,
                   const std::vector<float>& values, bool is_last);
  [[nodiscard]] std::shared_ptr<const Image> image(std::uint32_t arrays);
  [[nodiscard]] std::shared_ptr<const Image> image_ahead(double pushes) const;

  // What time brings about, and the end.
  Awaitable<void> tick();
  void elect();
  void look_after(Worker& waiting);
  void end_if_over();
  void finish(const Error& error);
  Awaitable<void> close_all(End end);
  [[nodiscard]] End end_of(std::string cause) const;
  void say(LogLevel level, const std::string& text) const {
    if (options_.say) {
      options_.say(level, text);
    }
  }

  const Options options_;
  boost::asio::io_context io_;
  std::optional<StoreJournal> journal_;
  std::unique_ptr<Store> store_;
  Listener listener_;
  StoreRoster roster_;
  std::shared_ptr<const Image> newest_;  // that was pulled
  bool is_recovered_ = false;            // the store is what an earlier process kept
  bool has_been_led_ = false;            // since then
  bool over_ = false;
  std::optional<Error> cause_;  // unless it ended in order

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  bool has_begun_ = false;
  bool has_workers_ = false;
  std::optional<End> end_;
  std::thread thread_;
};

}  // namespace lockstep::server
