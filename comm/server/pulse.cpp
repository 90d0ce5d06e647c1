#include "comm/server/pulse.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"
#include "comm/control/asio.h"
#include "comm/server/dial.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using Clock = Connection::Clock;

}  // namespace

class Pulse::Impl {
 public:
  explicit Impl(Options options) : options_(std::move(options)) {
    asio::co_spawn(io_, keep_time(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~Impl() {
    io_.stop();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void watch(int number, const ServerAddress& address) {
    const auto asked = std::make_shared<Asked>(address);
    const std::lock_guard lock(mutex_);
    asked_[number] = asked;
    asio::co_spawn(io_, ask(asked), asio::detached);
  }
  void forget(int number) {
    const std::lock_guard lock(mutex_);
    asked_.erase(number);
  }
  [[nodiscard]] bool is_watched(int number) const {
    const std::lock_guard lock(mutex_);
    return asked_.contains(number);
  }
  [[nodiscard]] std::optional<milliseconds> silence_of(int number) const {
    const std::lock_guard lock(mutex_);
    const auto place = asked_.find(number);
    if (place == asked_.end() || !place->second->answered) {
      return {};
    }
    const auto silence = looked_ - *place->second->answered;
    return std::max(milliseconds(0), std::chrono::duration_cast<milliseconds>(silence));
  }

 private:
  struct Asked {
    explicit Asked(ServerAddress where) : address(std::move(where)) {}
    const ServerAddress address;
    std::optional<Clock::time_point> answered = {};  // under the mutex
  };

  // As long as it is watched.
  asio::awaitable<void> ask(std::weak_ptr<Asked> weak) {
    while (const auto address = address_of(weak)) {
      try {
        co_await ask_over_a_connection(*address, weak);
      } catch (const Error&) {
        // Asked again: whether it is lost, silence tells.
      }
      co_await pause();
    }
  }
  [[nodiscard]] static std::optional<ServerAddress> address_of(const std::weak_ptr<Asked>& weak) {
    const std::shared_ptr<Asked> asked = weak.lock();
    return asked ? std::optional(asked->address) : std::nullopt;
  }

  asio::awaitable<void> ask_over_a_connection(ServerAddress address, std::weak_ptr<Asked> weak) {
    asio::ip::tcp::socket socket(io_);
    if (co_await reach(io_, address, socket)) {
      co_return;
    }
    const auto connection = co_await Connection::greet(socket, options_.token, options_.tls, address.host);
    while (true) {
      connection->send({.header = {.type = FrameType::kAlive}});
      const FrameHeader header = co_await connection->read_header();
      require(header.type == FrameType::kAlive, "server: a frame of type {} where a sign of life was expected",
              static_cast<int>(header.type));
      if (!note_answer(weak)) {
        connection->close();
        co_return;
      }
      co_await pause();
    }
  }

  [[nodiscard]] bool note_answer(const std::weak_ptr<Asked>& weak) {
    const std::shared_ptr<Asked> asked = weak.lock();
    const std::lock_guard lock(mutex_);
    if (asked) {
      asked->answered = Clock::now();
    }
    return asked != nullptr;
  }

  asio::awaitable<void> pause() {
    asio::steady_timer timer(io_, options_.period);
    co_await timer.async_wait(asio::use_awaitable);
  }

  // Silence is counted up to the last look only, and without the time in which this process stood still itself and
  // could not have heard anybody.
  asio::awaitable<void> keep_time() {
    while (true) {
      co_await pause();
      const auto now = Clock::now();
      const std::lock_guard lock(mutex_);
      const auto passed = now - looked_;
      for (const auto& [number, asked] : asked_) {
        if (asked->answered && passed > 2 * options_.period) {
          *asked->answered += passed - options_.period;
        }
      }
      looked_ = now;
    }
  }

  const Options options_;
  asio::io_context io_;
  mutable std::mutex mutex_;
  std::map<int, std::shared_ptr<Asked>> asked_;  // by number; under the mutex
  Clock::time_point looked_ = Clock::now();      // the same
  std::thread thread_;
};

Pulse::Pulse(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Pulse::~Pulse() = default;
void Pulse::watch(int number, const ServerAddress& address) { impl_->watch(number, address); }
void Pulse::forget(int number) { impl_->forget(number); }
bool Pulse::is_watched(int number) const { return impl_->is_watched(number); }
std::optional<milliseconds> Pulse::silence_of(int number) const { return impl_->silence_of(number); }

}  // namespace lockstep::server
