// How a worker comes into a group.
#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "comm/server/dial.h"
#include "comm/server/session_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr milliseconds kPauseBetweenTries{100};
// A server answers for workers that do not come; it gets this much longer.
constexpr milliseconds kLastResort{10'000};
// A group that is lost sooner has hardly been waited for.
constexpr milliseconds kWasListenedTo{1'000};

}  // namespace

asio::awaitable<void> Session::Impl::join_group() {
  auto deadline = Clock::now() + milliseconds(options_.timeout_ms);
  asio::co_spawn(io_, watch(), asio::detached);
  while (true) {
    const auto begin = Clock::now();
    try {
      co_await connect_all(deadline);
      is_in_ = true;
      has_near_server_ =
          options_.shares_memory && std::any_of(connections_.begin(), connections_.end(),
                                                [](const auto& connection) { return connection->stays_on_machine(); });
      *newest_group_ = std::max(newest_group_->load(), group_);
      co_return;
    } catch (const Lost& lost) {
      if (refusal_) {
        throw Error(*refusal_);
      }
      if (Clock::now() >= deadline) {
        throw Error(lost.code(), lost.what());
      }
      // How long workers wait for others is the servers' affair.
      deadline = Clock::now() - begin >= kWasListenedTo ? Clock::now() + milliseconds(options_.timeout_ms) : deadline;
    }
    disconnect();
    asio::steady_timer pause(io_, kPauseBetweenTries);
    co_await pause.async_wait(asio::use_awaitable);
  }
}

void Session::Impl::disconnect() {
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->close();
  }
  connections_.clear();
  lost_.reset();
  rank_ = options_.rank ? static_cast<std::uint32_t>(*options_.rank) : kNoRank;
  world_ = static_cast<std::uint32_t>(options_.world);
  group_ = 0;
}

asio::awaitable<void> Session::Impl::connect_all(Clock::time_point deadline) {
  const std::size_t servers = options_.servers.size();
  has_said_bye_.assign(servers, false);
  greets_.assign(servers, false);
  outgoing_.resize(servers);
  incoming_.resize(servers);
  // The first tells the rank and the group that the others are told.
  for (std::size_t server = 0; server < servers; ++server) {
    co_await connect(server, deadline);
    asio::co_spawn(io_, receive(server, connections_[server]), asio::detached);
    if (lost_) {
      throw Lost(*lost_);
    }
  }
}

asio::awaitable<void> Session::Impl::connect(std::size_t server, Clock::time_point deadline) {
  const std::string where = text_of(options_.servers[server]);
  asio::steady_timer pause(io_);
  while (true) {
    std::string problem;
    try {
      tcp::socket socket(io_);
      const error_code unreached = co_await reach(io_, options_.servers[server], socket);
      problem = unreached ? unreached.message() : "";
      if (problem.empty()) {
        connections_.push_back(
            co_await Connection::greet(socket, options_.token, options_.tls, options_.servers[server].host));
        co_await introduce(server);
        co_return;
      }
    } catch (const Refusal&) {
      throw;
    } catch (const Lost&) {
      throw;
    } catch (const Error& error) {
      require(error.code() != ErrorCode::kUsage, "{} ({})", error.what(), where);
      problem = error.what();
    }
    if (lost_) {
      throw Lost(*lost_);
    }
    if (Clock::now() >= deadline) {
      fail(ErrorCode::kTimeout, "server: {} has not answered for {:.1f} s: {}", where, options_.timeout_ms / 1e3,
           problem);
    }
    pause.expires_after(kPauseBetweenTries);
    co_await pause.async_wait(asio::use_awaitable);
  }
}

// Says who this worker is, and waits until a group is complete.
asio::awaitable<void> Session::Impl::introduce(std::size_t server) {
  const std::shared_ptr<Connection> connection = connections_[server];
  Hello hello;
  hello.rank = rank_;
  hello.world = world_;
  hello.part = static_cast<std::uint32_t>(server);
  hello.parts = static_cast<std::uint32_t>(options_.servers.size());
  hello.timeout_ms = static_cast<std::uint32_t>(options_.timeout_ms);
  hello.silence_ms = static_cast<std::uint32_t>(options_.silence_ms);
  hello.group = server == 0 ? newest_group_->load() : group_;
  hello.process = options_.process;
  hello.insists = options_.insists && server == 0;
  hello.name = options_.name;
  connection->send(FrameHeader{.type = FrameType::kHello}, encode(hello));

  // Where servers give signs of life, silence tells that one is lost.
  std::optional<asio::steady_timer> last_resort;
  if (options_.silence_ms == 0) {
    last_resort.emplace(connection->close_in(milliseconds(options_.timeout_ms) + kLastResort));
  }
  const std::string where = text_of(options_.servers[server]);
  FrameHeader header;
  std::vector<std::byte> payload;
  try {
    do {
      header = co_await connection->read_header();
      payload = co_await connection->read_small_payload(header);
    } while (header.type == FrameType::kAlive);
  } catch (const Error& error) {
    throw Lost(error.code(), fmt::format("{} ({})", error.what(), where));
  }
  if (header.type == FrameType::kFail || header.type == FrameType::kRegroup) {
    const Error error = decode_error(payload);
    const std::string text = fmt::format("{} ({})", error.what(), where);
    if (header.type == FrameType::kFail) {
      throw Refusal(error.code(), text);
    }
    throw Lost(error.code(), text);
  }
  require(header.type == FrameType::kWelcome, "server: a frame of type {} where a welcome was expected",
          static_cast<int>(header.type));
  const Welcome welcome = decode_welcome(payload);
  require(server == 0 || (rank_ == welcome.rank && world_ == welcome.world && group_ == welcome.group),
          "server: a welcome as rank {} of {} to rank {} of {}", welcome.rank, welcome.world, rank_, world_);
  rank_ = welcome.rank;
  world_ = welcome.world;
  group_ = welcome.group;
}

}  // namespace lockstep::server
