#include "comm/control/coordinator.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <future>
#include <list>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/process.h"
#include "comm/control/channel.h"

namespace lockstep::control {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

// Connections in the middle of the handshake. When more come, the oldest goes: a job's own take a millisecond.
constexpr std::size_t kMaxPending = 64;
// Those who look on, beside the workers.
constexpr int kMaxOnlookers = 16;

}  // namespace

// Everything below the first three functions runs on the thread.
class Coordinator::Impl {
 public:
  explicit Impl(Options options)
      : options_(std::move(options)), period_(std::clamp(options_.silence_ms / 50, 10, 100)), acceptor_(io_) {
    const auto address = options_.on_this_machine_only ? asio::ip::address(asio::ip::address_v4::loopback())
                                                       : asio::ip::address(asio::ip::address_v4::any());
    error_code error;
    const auto check = [&error] {
      if (error) {
        fail(ErrorCode::kIo, "control: no port to listen on: {}", error.message());
      }
    };
    acceptor_.open(tcp::v4(), error);
    check();
    acceptor_.bind({address, 0}, error);
    check();
    acceptor_.listen(asio::socket_base::max_listen_connections, error);
    check();
    port_ = acceptor_.local_endpoint().port();
    asio::co_spawn(io_, accept_all(), asio::detached);
    asio::co_spawn(io_, watch(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~Impl() {
    io_.stop();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // Runs `job` on the thread and waits for it.
  template <typename Job>
  auto run(Job job) const {
    std::packaged_task<decltype(job())()> task(std::move(job));
    auto result = task.get_future();
    asio::post(io_, [&task] { task(); });
    return result.get();
  }

  const Options& options() const { return options_; }
  std::uint16_t port() const { return port_; }

  void begin_attempt(int attempt, int world);
  void replace(int rank);
  void request(Order order);
  void end(const std::string& reason);
  [[nodiscard]] bool all_sent() const;
  JobState state() const;
  bool all_ended() const { return roster_ && roster_->all_ended(); }
  std::optional<int> common_exit_code() const { return roster_ ? roster_->common_exit_code() : std::nullopt; }

 private:
  using Clock = Roster::Clock;
  template <typename T>
  using Awaitable = asio::awaitable<T>;

  Awaitable<void> accept_all();
  Awaitable<void> serve(std::list<tcp::socket*>::iterator place, tcp::socket socket);
  Awaitable<void> serve_worker(const std::shared_ptr<Channel>& channel, const Hello& hello);
  Awaitable<void> serve_onlooker(const std::shared_ptr<Channel>& channel, std::string text);
  Awaitable<void> watch();
  void broadcast(const Command& command);

  Options options_;
  const milliseconds period_;
  mutable asio::io_context io_;
  tcp::acceptor acceptor_;
  std::uint16_t port_ = 0;
  std::list<tcp::socket*> pending_;
  std::optional<Roster> roster_;
  int attempt_ = 0;
  bool over_ = false;  // the attempt: its workers have been told to end, and what they do is their own affair
  std::map<int, std::shared_ptr<Channel>> channels_;  // by rank
  int onlookers_ = 0;
  bool stop_requested_ = false;
  std::uint64_t refused_ = 0;
  std::thread thread_;
};

void Coordinator::Impl::begin_attempt(int attempt, int world) {
  for (const auto& [rank, channel] : channels_) {
    channel->close();
  }
  channels_.clear();
  attempt_ = attempt;
  over_ = false;
  roster_.emplace(Roster::Options{.world = world,
                                  .attempt = attempt,
                                  .silence = milliseconds(options_.silence_ms),
                                  .still = milliseconds(options_.still_ms),
                                  .start = milliseconds(options_.start_ms),
                                  .period = period_,
                                  .replaces_workers = options_.replaces_workers,
                                  .own_host = host_name(),
                                  .own_namespace = process_namespace()},
                  Clock::now());
}

void Coordinator::Impl::replace(int rank) {
  if (const auto found = channels_.find(rank); found != channels_.end()) {
    found->second->close();
    channels_.erase(found);
  }
  if (roster_) {
    roster_->replace(rank, Clock::now());
  }
}

void Coordinator::Impl::broadcast(const Command& command) {
  const std::string text = to_text(command);
  for (const auto& [rank, channel] : channels_) {
    channel->send(text);
  }
}

void Coordinator::Impl::request(Order order) {
  stop_requested_ |= order == Order::kStop;
  broadcast({order, ""});
}

void Coordinator::Impl::end(const std::string& reason) {
  over_ = true;
  broadcast({Order::kEnd, reason});
}

bool Coordinator::Impl::all_sent() const {
  for (const auto& [rank, channel] : channels_) {
    if (!channel->idle()) {
      return false;
    }
  }
  return true;
}

JobState Coordinator::Impl::state() const {
  JobState job = roster_ ? roster_->state(Clock::now()) : JobState{.attempt = 0, .world = 0, .workers = {}};
  job.stop_requested = stop_requested_;
  job.refused_connections = refused_;
  return job;
}

asio::awaitable<void> Coordinator::Impl::accept_all() {
  while (true) {
    error_code error;
    tcp::socket socket(io_);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      // Out of file descriptors, for one: what is open may end.
      asio::steady_timer pause(io_, period_);
      co_await pause.async_wait(asio::use_awaitable);
      continue;
    }
    if (pending_.size() >= kMaxPending) {
      pending_.front()->close(error);
    }
    pending_.push_back(nullptr);
    const auto place = std::prev(pending_.end());
    asio::co_spawn(io_, serve(place, std::move(socket)), asio::detached);
  }
}

asio::awaitable<void> Coordinator::Impl::serve(std::list<tcp::socket*>::iterator place, tcp::socket socket) {
  std::shared_ptr<Channel> channel;
  std::string first;
  *place = &socket;
  try {
    channel = co_await Channel::accept(socket, options_.token);
  } catch (const Error&) {
    ++refused_;
  }
  pending_.erase(place);
  if (!channel) {
    co_return;
  }
  try {
    first = co_await channel->receive();
    const Message message = parse_message(first);
    if (const auto* hello = std::get_if<Hello>(&message)) {
      co_await serve_worker(channel, *hello);
    } else if (onlookers_ < kMaxOnlookers) {
      ++onlookers_;
      try {
        co_await serve_onlooker(channel, std::move(first));
      } catch (const Error&) {
        channel->close();
      }
      --onlookers_;
    }
  } catch (const Error&) {
    channel->close();
  }
}

asio::awaitable<void> Coordinator::Impl::serve_worker(const std::shared_ptr<Channel>& channel, const Hello& hello) {
  if (!roster_ || over_ || !roster_->hello(hello, Clock::now())) {
    channel->send(to_text(Command{Order::kEnd, fmt::format("rank {} of attempt {} is not expected here (attempt {})",
                                                           hello.rank, hello.attempt, attempt_)}));
    co_await channel->flush(milliseconds(options_.silence_ms));
    channel->close();
    co_return;
  }
  const int attempt = attempt_;
  channels_[hello.rank] = channel;
  if (stop_requested_) {
    channel->send(to_text(Command{Order::kStop, ""}));
  }
  const auto is_current = [&] {
    const auto found = channels_.find(hello.rank);
    return attempt == attempt_ && found != channels_.end() && found->second == channel;
  };
  try {
    while (true) {
      const Message message = parse_message(co_await channel->receive());
      if (!is_current()) {
        break;
      }
      if (const auto* heartbeat = std::get_if<Heartbeat>(&message)) {
        roster_->heartbeat(hello.rank, *heartbeat, Clock::now());
      } else if (const auto* farewell = std::get_if<Farewell>(&message)) {
        roster_->farewell(hello.rank, *farewell, Clock::now());
        channel->send(to_text(Command{Order::kAlive, ""}));  // heard
      } else {
        fail(ErrorCode::kCorrupt, "control: rank {} sent what no worker sends", hello.rank);
      }
    }
  } catch (const Error&) {
    channel->close();
  }
  if (is_current()) {
    channels_.erase(hello.rank);
    roster_->closed(hello.rank, Clock::now());
  }
}

asio::awaitable<void> Coordinator::Impl::serve_onlooker(const std::shared_ptr<Channel>& channel, std::string text) {
  while (true) {
    const Message message = parse_message(text);
    const auto* const ask = std::get_if<Ask>(&message);
    if (ask == nullptr) {
      fail(ErrorCode::kCorrupt, "control: someone who looks on sent what only workers send");
    }
    if (ask->question == Question::kSave) {
      request(Order::kSave);
    } else if (ask->question == Question::kStop) {
      request(Order::kStop);
    }
    channel->send(to_text(state()));
    text = co_await channel->receive();
  }
}

// Looks after the workers, and lets them hear that it does.
asio::awaitable<void> Coordinator::Impl::watch() {
  asio::steady_timer timer(io_);
  auto due = Clock::now();
  auto greeting_due = due;
  const auto between_greetings = milliseconds(options_.silence_ms / 10);
  while (true) {
    due += period_;
    timer.expires_at(due);
    co_await timer.async_wait(asio::use_awaitable);
    const auto now = Clock::now();
    due = std::max(due, now - period_);  // what was missed is not made up for
    if (!roster_) {
      continue;
    }
    const std::vector<Trouble> found = over_ ? std::vector<Trouble>{} : roster_->check(now);
    const auto fatal = std::find_if(found.begin(), found.end(), [](const Trouble& trouble) { return trouble.fatal; });
    if (fatal != found.end()) {
      end(fatal->text);
      for (int i = 0; i < 10 && !all_sent(); ++i) {
        timer.expires_after(milliseconds(10));
        co_await timer.async_wait(asio::use_awaitable);
      }
    }
    if (!found.empty() && options_.on_trouble) {
      options_.on_trouble(found);
    }
    if (now >= greeting_due) {
      broadcast({Order::kAlive, options_.own_phase ? options_.own_phase() : ""});
      greeting_due = now + between_greetings;
    }
  }
}

Coordinator::Coordinator(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Coordinator::~Coordinator() = default;

std::uint16_t Coordinator::port() const { return impl_->port(); }

void Coordinator::begin_attempt(int attempt, int world) {
  impl_->run([&] { impl_->begin_attempt(attempt, world); });
}

void Coordinator::replace(int rank) {
  impl_->run([&] { impl_->replace(rank); });
}

void Coordinator::request_stop() {
  impl_->run([&] { impl_->request(Order::kStop); });
}

void Coordinator::request_save() {
  impl_->run([&] { impl_->request(Order::kSave); });
}

void Coordinator::end(const std::string& reason) {
  impl_->run([&] { impl_->end(reason); });
  for (int i = 0; i < 20 && !impl_->run([&] { return impl_->all_sent(); }); ++i) {
    std::this_thread::sleep_for(milliseconds(10));
  }
}

std::optional<int> Coordinator::common_exit_code() const {
  return impl_->run([&] { return impl_->common_exit_code(); });
}

JobState Coordinator::state() const {
  return impl_->run([&] { return impl_->state(); });
}

void Coordinator::wait_for_farewells(int deadline_ms) {
  const auto deadline = Roster::Clock::now() + milliseconds(deadline_ms);
  while (!impl_->run([&] { return impl_->all_ended(); }) && Roster::Clock::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(5));
  }
}

}  // namespace lockstep::control
