#include "comm/control/client.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <exception>
#include <fstream>
#include <future>
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
using Clock = std::chrono::steady_clock;

constexpr milliseconds kConnectDeadline{1'000};
constexpr milliseconds kPauseBetweenTries{100};

double seconds_of(clockid_t clock) {
  timespec time = {};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// proc(5)'s /proc/PID/io: bytes written by any call, and read from storage. Reading /proc itself is in neither.
std::uint64_t file_bytes() {
  std::ifstream file("/proc/self/io");
  std::uint64_t sum = 0;
  std::string name;
  for (std::uint64_t value = 0; file >> name >> value;) {
    if (name == "wchar:" || name == "read_bytes:") {
      sum += value;
    }
  }
  return sum;
}

// Several addresses of one coordinator, tried at the same time: a host has addresses that others cannot reach, and ones
// that other hosts have, too (those of container bridges).
struct Race {
  Race(asio::io_context& io, std::size_t addresses) : over(io), left(addresses) {}

  asio::steady_timer over;  // cancelled when there is a winner, or nobody is left
  std::size_t left;
  bool all_refused = true;
  std::string problem;
  std::optional<Error> refusal;  // of one who speaks, but does not belong to this job
  std::shared_ptr<Channel> winner;
  std::string winners_host;
  std::vector<std::shared_ptr<tcp::socket>> sockets;
};

asio::awaitable<void> try_address(std::shared_ptr<Race> race, std::shared_ptr<tcp::socket> socket, tcp::endpoint where,
                                  JobToken token) {
  try {
    error_code error;
    co_await socket->async_connect(where, asio::redirect_error(asio::use_awaitable, error));
    race->all_refused = race->all_refused && error == asio::error::connection_refused;
    if (error) {
      race->problem = error == asio::error::operation_aborted ? "no answer" : error.message();
    } else {
      std::shared_ptr<Channel> channel = co_await Channel::greet(*socket, token);
      if (race->winner) {
        channel->close();
      } else {
        race->winner = std::move(channel);
        race->winners_host = where.address().to_string();
      }
    }
  } catch (const Error& error) {
    race->all_refused = false;
    race->refusal = error.code() == ErrorCode::kUsage ? error : race->refusal;
    race->problem = error.what();
  }
  if (--race->left == 0 || race->winner) {
    race->over.cancel();
  }
}

// Connects to the first of the addresses that answers as the coordinator does, which then stands in `known`. Throws
// Error(kPeerLost) when all of them refuse, or `known` does, which is to say that no process listens there,
// Error(kUsage) when only strangers answer, and Error(kTimeout) when nobody does.
asio::awaitable<std::shared_ptr<Channel>> connect(asio::io_context& io, const CoordinatorAddress& where,
                                                  std::string& known) {
  const std::vector<std::string> hosts = known.empty() ? where.hosts : std::vector<std::string>{known};
  const auto race = std::make_shared<Race>(io, hosts.size());
  race->over.expires_after(kConnectDeadline);
  for (const std::string& host : hosts) {
    error_code error;
    const asio::ip::address address = asio::ip::make_address(host, error);
    require(!error, "control: {} is no address", host);
    race->sockets.push_back(std::make_shared<tcp::socket>(io));
    asio::co_spawn(io, try_address(race, race->sockets.back(), {address, where.port}, where.token), asio::detached);
  }
  error_code cancelled;
  co_await race->over.async_wait(asio::redirect_error(asio::use_awaitable, cancelled));
  if (race->winner) {
    known = race->winners_host;
  }
  for (const std::shared_ptr<tcp::socket>& socket : race->sockets) {
    error_code ignored;
    socket->close(ignored);  // the winner's is its channel's by now
  }
  if (race->winner) {
    co_return race->winner;
  }
  if (race->refusal) {
    throw Error(*race->refusal);
  }
  const bool gone = race->left == 0 && race->all_refused;
  fail(gone ? ErrorCode::kPeerLost : ErrorCode::kTimeout, "control: no coordinator at {} port {}: {}",
       fmt::join(hosts, ", "), where.port, race->problem.empty() ? "no answer" : race->problem);
}

}  // namespace

class Client::Impl {
 public:
  Impl(Options options, const Activity& activity)
      : options_(std::move(options)), activity_(activity), process_(::getpid()), timer_(io_), lease_timer_(io_) {
    heard_ = Clock::now();
    asio::co_spawn(io_, talk(), asio::detached);
    asio::co_spawn(io_, watch_lease(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~Impl() {
    io_.stop();
    thread_.join();
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  void farewell(const Farewell& farewell);

 private:
  asio::awaitable<void> talk();
  asio::awaitable<void> listen(const std::shared_ptr<Channel>& channel);
  asio::awaitable<void> beat(std::shared_ptr<Channel> channel);
  asio::awaitable<void> watch_lease();
  asio::awaitable<void> say_farewell(Farewell farewell, std::shared_ptr<std::promise<void>> done);
  [[nodiscard]] Heartbeat heartbeat() const;
  void end(const std::string& reason) {
    if (!std::exchange(over_, true)) {
      options_.on_end(reason);
    }
  }

  Options options_;
  const Activity& activity_;
  const pid_t process_;  // whose number is its main thread's
  asio::io_context io_;
  asio::steady_timer timer_;
  asio::steady_timer lease_timer_;
  Clock::time_point heard_;
  bool ever_connected_ = false;
  std::string address_;  // by which the coordinator has answered
  bool over_ = false;    // nobody is to be called any more
  std::string last_phase_;
  std::shared_ptr<Channel> channel_;
  std::thread thread_;
};

Heartbeat Client::Impl::heartbeat() const {
  Heartbeat heartbeat;
  heartbeat.activity = activity_.now();
  heartbeat.cpu_seconds = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - seconds_of(CLOCK_THREAD_CPUTIME_ID);
  if (const auto status = process_status(process_)) {
    heartbeat.thread_state = status->state;
  }
  heartbeat.io_bytes = file_bytes();
  return heartbeat;
}

// Connects, and again when the connection breaks, as long as the lease lasts.
asio::awaitable<void> Client::Impl::talk() {
  std::string problem;
  while (!over_) {
    try {
      channel_ = co_await connect(io_, options_.coordinator, address_);
      ever_connected_ = true;
      heard_ = Clock::now();
      channel_->send(to_text(options_.hello));
      asio::co_spawn(io_, beat(channel_), asio::detached);
      co_await listen(channel_);
    } catch (const Error& error) {
      if (channel_) {
        channel_->close();
        channel_.reset();
      } else if (ever_connected_ && error.code() == ErrorCode::kPeerLost && !over_) {
        over_ = true;
        options_.on_coordinator_gone(last_phase_);
      } else if (!ever_connected_ && error.code() == ErrorCode::kUsage) {
        end(error.what());
      }
      problem = error.what();
    }
    if (!over_) {
      timer_.expires_after(kPauseBetweenTries);
      co_await timer_.async_wait(asio::use_awaitable);
    }
  }
}

asio::awaitable<void> Client::Impl::listen(const std::shared_ptr<Channel>& channel) {
  while (true) {
    const Message message = parse_message(co_await channel->receive());
    const auto* const command = std::get_if<Command>(&message);
    if (command == nullptr) {
      fail(ErrorCode::kCorrupt, "control: the coordinator sent what it never sends");
    }
    heard_ = Clock::now();
    if (over_) {
      continue;
    }
    switch (command->order) {
      case Order::kAlive:
        last_phase_ = command->reason;
        break;
      case Order::kSave:
      case Order::kStop:
        options_.on_request(command->order);
        break;
      case Order::kEnd:
        end(command->reason);
        break;
    }
  }
}

asio::awaitable<void> Client::Impl::beat(std::shared_ptr<Channel> channel) {
  asio::steady_timer timer(io_);
  while (!over_ && channel == channel_) {
    channel->send(to_text(heartbeat()));
    timer.expires_after(milliseconds(options_.silence_ms / 10));
    co_await timer.async_wait(asio::use_awaitable);
  }
}

asio::awaitable<void> Client::Impl::watch_lease() {
  const milliseconds lease(options_.silence_ms);
  while (!over_) {
    lease_timer_.expires_at(heard_ + lease);
    co_await lease_timer_.async_wait(asio::use_awaitable);
    const auto since = Clock::now() - heard_;
    if (since >= lease) {
      const double seconds = std::chrono::duration<double>(since).count();
      end(ever_connected_ ? fmt::format("the coordinator ({}) has not answered for {:.1f} s{}",
                                        fmt::join(options_.coordinator.hosts, ", "), seconds,
                                        last_phase_.empty() ? "" : "; it was last seen in " + last_phase_)
                          : fmt::format("no coordinator answers at {} port {}",
                                        fmt::join(options_.coordinator.hosts, ", "), options_.coordinator.port));
    }
  }
}

asio::awaitable<void> Client::Impl::say_farewell(Farewell farewell, std::shared_ptr<std::promise<void>> done) {
  over_ = true;
  if (const std::shared_ptr<Channel> channel = channel_) {
    channel->send(to_text(heartbeat()));
    channel->send(to_text(farewell));
    const auto before = heard_;
    asio::steady_timer timer(io_);
    for (int i = 0; i < 100 && heard_ == before; ++i) {
      timer.expires_after(milliseconds(10));
      co_await timer.async_wait(asio::use_awaitable);
    }
    channel->close();
  }
  done->set_value();
}

void Client::Impl::farewell(const Farewell& farewell) {
  const auto done = std::make_shared<std::promise<void>>();
  std::future<void> said = done->get_future();
  asio::post(io_, [this, farewell, done] { asio::co_spawn(io_, say_farewell(farewell, done), asio::detached); });
  said.wait_for(std::chrono::seconds(2));
}

Client::Client(Options options, const Activity& activity)
    : impl_(std::make_unique<Impl>(std::move(options), activity)) {}
Client::~Client() = default;

void Client::farewell(const Farewell& farewell) { impl_->farewell(farewell); }

JobState ask(const CoordinatorAddress& coordinator, Question question, int deadline_ms) {
  asio::io_context io;
  std::optional<JobState> answer;
  std::exception_ptr problem;
  const auto conversation = [&]() -> asio::awaitable<void> {
    std::string address;
    const std::shared_ptr<Channel> channel = co_await connect(io, coordinator, address);
    channel->send(to_text(Ask{question}));
    const Message message = parse_message(co_await channel->receive());
    if (const auto* const job = std::get_if<JobState>(&message)) {
      answer = *job;
    }
    channel->close();
  };
  asio::co_spawn(io, conversation(), [&](std::exception_ptr error) {
    problem = std::move(error);
    io.stop();
  });
  io.run_for(milliseconds(deadline_ms));
  if (problem) {
    std::rethrow_exception(problem);
  }
  if (!answer) {
    fail(ErrorCode::kTimeout, "control: the coordinator at {} port {} did not answer within {} ms",
         fmt::join(coordinator.hosts, ", "), coordinator.port, deadline_ms);
  }
  return *answer;
}

}  // namespace lockstep::control
