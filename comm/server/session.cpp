#include "comm/server/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <map>
#include <thread>
#include <utility>

#include "base/error.h"
#include "comm/control/handshake.h"
#include "comm/server/operation.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using Clock = Connection::Clock;

constexpr std::size_t kMaxInFlight = 1024;
constexpr milliseconds kPauseBetweenTries{100};
constexpr milliseconds kConnectDeadline{5'000};
// How often a server may end a handshake before the token is taken to be wrong: it also does so when it is flooded.
constexpr int kMostBrokenHandshakes = 5;
// How long a server has to answer who is to blame.
constexpr milliseconds kAnswerDeadline{3'000};
// How long the last frames may take on their way.
constexpr milliseconds kFarewell{500};
// How often one side lets the other hear from it in the time in which silence means that it is lost.
constexpr int kSignsInSilence = 5;
// A server answers for workers that do not come; it gets this much longer.
constexpr milliseconds kLastResort{10'000};

std::string text_of(const ServerAddress& address) { return address.host + ":" + address.port; }

// Part `part` of `parts` of `count` elements.
ElementRange part_of(std::uint64_t count, std::size_t part, std::size_t parts) {
  return {count / parts * part + std::min<std::uint64_t>(part, count % parts),
          count / parts * (part + 1) + std::min<std::uint64_t>(part + 1, count % parts)};
}

// What a server says to a worker that it does not take: to try again is of no use.
class Refusal : public Error {
 public:
  using Error::Error;
};
// A group that is over before this worker was in it.
class Lost : public Error {
 public:
  using Error::Error;
};

ServerAddress parse_address(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  require(colon != std::string::npos && colon > 0 && colon + 1 < text.size() &&
              text.find_first_not_of("0123456789", colon + 1) == std::string::npos,
          "comm.servers: found \"{}\", expected HOST:PORT", text);
  std::string host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  return {host, text.substr(colon + 1)};
}

}  // namespace

std::uint64_t own_process() {
  static const std::uint64_t own = [] {
    const control::Digest random = control::random_challenge();
    std::uint64_t number = 0;
    std::memcpy(&number, random.data(), sizeof(number));
    return number;
  }();
  return own;
}

std::vector<ServerAddress> parse_addresses(const std::string& text) {
  require(!text.empty(), "comm.servers is empty; comm.backend: server needs HOST:PORT of each `lockstep serve`");
  std::vector<ServerAddress> addresses;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    addresses.push_back(parse_address(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return addresses;
}

// Runs on the session's thread but for what is marked.
class Session::Impl {
 public:
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
  Work sum(std::string name, BufferView data, ElementRange wanted);
  Work gather(std::string name, std::span<std::byte> bytes, std::vector<ElementRange> owned);
  void check() const;
  [[nodiscard]] bool may_rejoin() const;
  void close();
  void leave();

 private:
  template <typename T>
  using Awaitable = asio::awaitable<T>;

  // Runs it on the thread, and waits for it.
  void wait_for(Awaitable<void> run);
  using Queue = void (Impl::*)(const std::shared_ptr<Operation>&);
  Work start(const std::shared_ptr<Operation>& operation, Queue queue);

  Awaitable<void> join_group();
  Awaitable<void> connect_all(Clock::time_point deadline);
  void disconnect();
  Awaitable<void> connect(std::size_t server, Clock::time_point deadline);
  Awaitable<std::string> reach(std::size_t server, tcp::socket& socket);
  Awaitable<void> introduce(std::size_t server, Clock::time_point deadline);
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
  void finish_if_done(const std::shared_ptr<Operation>& operation);
  void ask_who(const Operation& operation, Clock::duration waited);
  // Ends the session, once; before it has begun, only this attempt to join a group.
  void fail_session(const Error& error, Job job);

  const Options options_;
  const std::shared_ptr<Outcome> outcome_ = std::make_shared<Outcome>();
  std::uint64_t last_call_ = 0;  // the caller's
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> stay_ = asio::make_work_guard(io_);
  std::vector<std::shared_ptr<Connection>> connections_;  // one a server
  std::vector<bool> has_said_bye_;
  std::vector<bool> greets_;  // by server: a sign of life is on its way
  std::optional<Lost> lost_;  // the group, on the way into it
  bool is_in_ = false;        // a group, with all servers
  asio::steady_timer bye_came_{io_};
  std::map<std::uint64_t, std::shared_ptr<Operation>> operations_;  // by call
  Clock::time_point data_came_ = Clock::now();                      // signs of life are no data
  Clock::time_point data_went_ = Clock::now();
  Clock::time_point watched_ = Clock::now();
  Clock::time_point heard_from_ = Clock::now();  // silence counts from here on
  std::optional<Clock::time_point> asked_who_;
  bool failing_ = false;         // or closed: no call begins any more
  std::exception_ptr ended_by_;  // once the connections are closed
  std::uint32_t rank_ = 0;
  std::uint32_t world_ = 0;
  std::uint64_t group_ = 0;
  std::thread thread_;
};

Session::Impl::Impl(Options options)
    : options_(std::move(options)),
      rank_(options_.rank ? static_cast<std::uint32_t>(*options_.rank) : kNoRank),
      world_(static_cast<std::uint32_t>(options_.world)) {
  thread_ = std::thread([this] { io_.run(); });
  try {
    wait_for(join_group());
  } catch (...) {
    io_.stop();
    thread_.join();
    throw;
  }
}

void Session::Impl::wait_for(Awaitable<void> run) {
  std::promise<void> done;
  asio::co_spawn(io_, std::move(run), [&done](std::exception_ptr error) {
    if (error) {
      done.set_exception(error);
    } else {
      done.set_value();
    }
  });
  done.get_future().get();
}

// Connecting.

asio::awaitable<void> Session::Impl::join_group() {
  const auto deadline = Clock::now() + milliseconds(options_.timeout_ms);
  asio::co_spawn(io_, watch(), asio::detached);
  while (true) {
    try {
      co_await connect_all(deadline);
      is_in_ = true;
      co_return;
    } catch (const Lost& lost) {
      if (Clock::now() >= deadline) {
        throw Error(lost.code(), lost.what());
      }
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
  int broken_handshakes = 0;
  asio::steady_timer pause(io_);
  while (true) {
    std::string problem;
    try {
      tcp::socket socket(io_);
      problem = co_await reach(server, socket);
      if (problem.empty()) {
        connections_.push_back(
            co_await Connection::greet(socket, options_.token, options_.tls, options_.servers[server].host));
        co_await introduce(server, deadline);
        co_return;
      }
    } catch (const Refusal&) {
      throw;
    } catch (const Lost&) {
      throw;
    } catch (const Error& error) {
      require(error.code() != ErrorCode::kUsage, "{} ({})", error.what(), where);
      problem = error.what();
      broken_handshakes += error.code() == ErrorCode::kPeerLost ? 1 : 0;
    }
    if (lost_) {
      throw Lost(*lost_);
    }
    require(broken_handshakes < kMostBrokenHandshakes,
            "server: {} ends each connection in the handshake; is its token the one of this worker?", where);
    if (Clock::now() >= deadline) {
      fail(ErrorCode::kTimeout, "server: {} has not answered for {:.1f} s: {}", where, options_.timeout_ms / 1e3,
           problem);
    }
    pause.expires_after(kPauseBetweenTries);
    co_await pause.async_wait(asio::use_awaitable);
  }
}

// Connects the socket, or says why not.
asio::awaitable<std::string> Session::Impl::reach(std::size_t server, tcp::socket& socket) {
  const ServerAddress& address = options_.servers[server];
  error_code error;
  tcp::resolver resolver(io_);
  const tcp::resolver::results_type found =
      co_await resolver.async_resolve(address.host, address.port, asio::redirect_error(asio::use_awaitable, error));
  if (error) {
    co_return error.message();
  }
  const control::Deadline deadline(socket, kConnectDeadline);
  co_await asio::async_connect(socket, found, asio::redirect_error(asio::use_awaitable, error));
  if (deadline.expired()) {
    co_return "no answer";
  }
  co_return error ? error.message() : "";
}

// Says who this worker is, and waits until a group is complete.
asio::awaitable<void> Session::Impl::introduce(std::size_t server, Clock::time_point deadline) {
  const std::shared_ptr<Connection> connection = connections_[server];
  Hello hello;
  hello.rank = rank_;
  hello.world = world_;
  hello.part = static_cast<std::uint32_t>(server);
  hello.parts = static_cast<std::uint32_t>(options_.servers.size());
  hello.timeout_ms = static_cast<std::uint32_t>(options_.timeout_ms);
  hello.silence_ms = static_cast<std::uint32_t>(options_.silence_ms);
  hello.group = group_;
  hello.process = options_.process;
  hello.insists = options_.insists && server == 0;
  hello.name = options_.name;
  connection->send(FrameHeader{.type = FrameType::kHello}, encode(hello));

  const auto latest = std::max(deadline, Clock::now() + milliseconds(options_.timeout_ms)) + kLastResort;
  asio::steady_timer last_resort(io_, latest);
  last_resort.async_wait([connection](const error_code& cancelled) {
    if (!cancelled) {
      connection->close();
    }
  });
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

// Calls.

Work Session::Impl::sum(std::string name, BufferView data, ElementRange wanted) {
  const auto operation = std::make_shared<Operation>(outcome_, std::move(name));
  operation->data = data;
  operation->wanted = wanted;
  return start(operation, &Impl::queue_sum);
}

Work Session::Impl::gather(std::string name, std::span<std::byte> bytes, std::vector<ElementRange> owned) {
  const auto operation = std::make_shared<Operation>(outcome_, std::move(name));
  operation->data = {bytes.data(), bytes.size(), DType::kU8, Device{}};
  operation->owned = std::move(owned);
  return start(operation, &Impl::queue_gather);
}

Work Session::Impl::start(const std::shared_ptr<Operation>& operation, Queue queue) {
  std::exception_ptr error;
  {
    std::unique_lock lock(outcome_->mutex);
    outcome_->changed.wait(lock, [this] { return outcome_->in_flight < kMaxInFlight || outcome_->error; });
    require(!outcome_->is_closed, "comm: a call after close()");
    ++outcome_->in_flight;
    error = outcome_->error;
  }
  if (error) {
    operation->finish(error);
    return Work(operation);
  }
  operation->call = ++last_call_;
  asio::post(io_, [this, operation, queue] {
    operation->begin = Clock::now();
    operation->awaited_of_server.resize(connections_.size());
    operation->awaited_of_rank.resize(world_);
    operations_.emplace(operation->call, operation);
    if (const std::exception_ptr ended = ended_by_) {
      operations_.erase(operation->call);
      operation->finish(ended);
    } else if (!failing_) {
      (this->*queue)(operation);
      finish_if_done(operation);
    }
  });
  return Work(operation);
}

void Session::Impl::queue_sum(const std::shared_ptr<Operation>& operation) {
  const BufferView& data = operation->data;
  FrameHeader header{.type = FrameType::kPush, .dtype = data.dtype, .call = operation->call, .rank = rank_};
  header.count = data.count;
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    const ElementRange part = part_of(data.count, server, connections_.size());
    operation->awaited_of_server[server] = intersection(part, operation->wanted).size() * size_of(data.dtype);
    queue_pieces(operation, server, header, part);
  }
}

void Session::Impl::queue_gather(const std::shared_ptr<Operation>& operation) {
  const std::uint64_t count = operation->data.count;
  FrameHeader header{.type = FrameType::kGive, .call = operation->call, .rank = rank_};
  header.count = count;
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    const ElementRange part = part_of(count, server, connections_.size());
    for (std::uint32_t rank = 0; rank < world_; ++rank) {
      if (rank != rank_) {
        const std::uint64_t awaited = intersection(part, operation->owned[rank]).size();
        operation->awaited_of_server[server] += awaited;
        operation->awaited_of_rank[rank] += awaited;
      }
    }
    connections_[server]->send({.header = {.type = FrameType::kTake, .call = operation->call, .rank = rank_}});
    if (world_ > 1) {
      queue_pieces(operation, server, header, intersection(part, operation->owned[rank_]));
    }
  }
}

// One frame for each piece of elements `range`.
void Session::Impl::queue_pieces(const std::shared_ptr<Operation>& operation, std::size_t server,
                                 const FrameHeader& header, ElementRange range) {
  const std::uint64_t longest = kMaxPayloadBytes / size_of(operation->data.dtype);
  for (std::uint64_t begin = range.begin; begin < range.end; begin += longest) {
    const ElementRange piece = {begin, std::min(begin + longest, range.end)};
    const BufferView from = operation->data.slice(piece);
    FrameHeader frame = header;
    frame.begin = piece.begin;
    frame.end = piece.end;
    if (header.type == FrameType::kPush) {
      const ElementRange wanted = intersection(piece, operation->wanted);
      frame.wanted_begin = wanted.begin;
      frame.wanted_end = wanted.end;
    }
    ++operation->unsent;
    connections_[server]->send({.header = frame,
                                .payload = {static_cast<const std::byte*>(from.data), from.size_bytes()},
                                .owner = operation,
                                .sent = [this, operation] {
                                  data_went_ = Clock::now();
                                  --operation->unsent;
                                  finish_if_done(operation);
                                }});
  }
}

void Session::Impl::finish_if_done(const std::shared_ptr<Operation>& operation) {
  const auto none = [](const std::vector<std::uint64_t>& awaited) {
    return std::all_of(awaited.begin(), awaited.end(), [](std::uint64_t bytes) { return bytes == 0; });
  };
  if (operation->unsent == 0 && none(operation->awaited_of_server) && operations_.erase(operation->call) == 1) {
    operation->finish();
  }
}

// What comes back.

asio::awaitable<void> Session::Impl::receive(std::size_t server, std::shared_ptr<Connection> connection) {
  const auto is_current = [&] { return server < connections_.size() && connections_[server] == connection; };
  try {
    while (true) {
      const FrameHeader header = co_await connection->read_header();
      if (header.type == FrameType::kSum || header.type == FrameType::kGive) {
        co_await receive_data(server, header);
        continue;
      }
      const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
      if (header.type == FrameType::kFail) {
        fail_session(decode_error(payload), Job::kOver);
      } else if (header.type == FrameType::kRegroup) {
        fail_session(decode_error(payload), Job::kGoesOn);
      } else if (header.type == FrameType::kBye) {
        has_said_bye_[server] = true;
        bye_came_.cancel();
      } else if (header.type != FrameType::kAlive) {
        fail(ErrorCode::kCorrupt, "a frame of type {}, which servers do not send", static_cast<int>(header.type));
      }
    }
  } catch (const Error& error) {
    if (is_current() && !has_said_bye_[server]) {
      const Error lost(error.code(), fmt::format("the parameter server {} is lost: {}",
                                                 text_of(options_.servers[server]), error.what()));
      fail_session(lost, error.code() == ErrorCode::kUsage ? Job::kOver : Job::kGoesOn);
    }
  }
}

asio::awaitable<void> Session::Impl::receive_data(std::size_t server, FrameHeader header) {
  const auto place = operations_.find(header.call);
  if (place == operations_.end()) {
    fail(ErrorCode::kCorrupt, "a frame of call {}, which is not under way", header.call);
  }
  const std::shared_ptr<Operation> operation = place->second;
  const bool is_sum = header.type == FrameType::kSum;
  const bool is_of_known_rank = header.rank < world_ && header.rank != rank_;
  const bool fits = header.count == operation->data.count && header.dtype == operation->data.dtype &&
                    is_sum == operation->owned.empty() && (is_sum || is_of_known_rank) &&
                    header.payload_bytes <= operation->awaited_of_server[server];
  if (!fits) {
    fail(ErrorCode::kUsage, "{}: call {} has another type or size on another rank", operation->name, header.call);
  }
  const ElementRange range = {header.begin, header.end};
  const ElementRange expected = intersection(part_of(header.count, server, connections_.size()),
                                             is_sum ? operation->wanted : operation->owned[header.rank]);
  if (intersection(range, expected) != range) {
    fail(ErrorCode::kUsage, "{}: elements [{}, {}) came, expected some of [{}, {})", operation->name, range.begin,
         range.end, expected.begin, expected.end);
  }
  const BufferView to = operation->data.slice(range);
  co_await connections_[server]->read_payload(header, {static_cast<std::byte*>(to.data), to.size_bytes()});
  data_came_ = Clock::now();
  operation->awaited_of_server[server] -= header.payload_bytes;
  if (!is_sum) {
    std::uint64_t& awaited = operation->awaited_of_rank[header.rank];
    awaited -= std::min<std::uint64_t>(awaited, header.payload_bytes);
  }
  finish_if_done(operation);
}

// Deadlines.

asio::awaitable<void> Session::Impl::watch() {
  const milliseconds shorter(options_.silence_ms > 0 ? std::min(options_.silence_ms, options_.timeout_ms)
                                                     : options_.timeout_ms);
  const milliseconds period = std::clamp(shorter / 20, milliseconds(5), milliseconds(250));
  asio::steady_timer timer(io_);
  while (!failing_) {
    timer.expires_after(period);
    co_await timer.async_wait(asio::use_awaitable);
    const auto now = Clock::now();
    if (options_.silence_ms > 0) {
      watch_servers(now);
    }
    if (operations_.empty()) {
      asked_who_.reset();
    } else if (!failing_) {
      watch_calls(now);
    }
  }
}

// Lets the servers hear from this worker, and hears whether they are there.
void Session::Impl::watch_servers(Clock::time_point now) {
  const milliseconds silence(options_.silence_ms);
  if (now - watched_ > silence / 4) {
    heard_from_ = now;  // this thread stood still itself, and cannot tell who else did
  }
  watched_ = now;
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    const std::shared_ptr<Connection>& connection = connections_[server];
    const auto quiet = now - std::max(connection->last_received(), heard_from_);
    if (quiet >= silence) {
      fail_session(Error(ErrorCode::kTimeout,
                         fmt::format("the parameter server {} has not answered for {:.1f} s",
                                     text_of(options_.servers[server]), std::chrono::duration<double>(quiet).count())),
                   Job::kGoesOn);
      return;
    }
    if (now - connection->last_sent() >= silence / kSignsInSilence && !greets_[server]) {
      greets_[server] = true;
      connection->send({.header = {.type = FrameType::kAlive}, .sent = [this, server] { greets_[server] = false; }});
    }
  }
}

void Session::Impl::watch_calls(Clock::time_point now) {
  const Operation& oldest = *operations_.begin()->second;
  const Clock::time_point received = std::max(oldest.begin, data_came_);
  const Clock::time_point moved = std::max(received, data_went_);
  if (asked_who_ && received < *asked_who_) {
    if (now - *asked_who_ >= kAnswerDeadline) {
      fail_session(
          Error(ErrorCode::kTimeout, fmt::format("{}: nothing came from the parameter server for {:.1f} s", oldest.name,
                                                 std::chrono::duration<double>(now - received).count())),
          Job::kGoesOn);
    }
    return;
  }
  asked_who_.reset();
  if (now - moved >= milliseconds(options_.timeout_ms)) {
    asked_who_ = now;
    ask_who(oldest, now - moved);
  }
}

// Asks the servers that this call waits for.
void Session::Impl::ask_who(const Operation& operation, Clock::duration waited) {
  FrameHeader header{.type = FrameType::kWho, .call = operation.call, .rank = kNoRank};
  const auto late = std::find_if(operation.awaited_of_rank.begin(), operation.awaited_of_rank.end(),
                                 [](std::uint64_t bytes) { return bytes > 0; });
  if (late != operation.awaited_of_rank.end()) {
    header.rank = static_cast<std::uint32_t>(late - operation.awaited_of_rank.begin());
  }
  const Who who{static_cast<std::uint32_t>(std::chrono::duration_cast<milliseconds>(waited).count()), operation.name};
  for (std::size_t server = 0; server < connections_.size(); ++server) {
    if (operation.awaited_of_server[server] > 0) {
      connections_[server]->send(header, encode(who));
    }
  }
}

// Ends.

void Session::Impl::fail_session(const Error& error, Job job) {
  if (!is_in_) {
    lost_ = Lost(error.code(), error.what());
    for (const std::shared_ptr<Connection>& connection : connections_) {
      connection->close();
    }
  } else if (!failing_) {
    failing_ = true;
    asio::co_spawn(io_, end_session(error, job), asio::detached);
  }
}

// The servers are told, so that they do not take this worker's end for the cause.
asio::awaitable<void> Session::Impl::end_session(Error error, Job job) {
  const FrameType type = job == Job::kGoesOn ? FrameType::kRegroup : FrameType::kFail;
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->send_last({.type = type}, encode(error));
  }
  const auto deadline = Clock::now() + kFarewell;
  for (const std::shared_ptr<Connection>& connection : connections_) {
    const auto left = std::max(deadline - Clock::now(), Clock::duration(0));
    co_await connection->flush(std::chrono::duration_cast<milliseconds>(left));
  }
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->close();
  }
  ended_by_ = std::make_exception_ptr(error);
  {
    const std::lock_guard lock(outcome_->mutex);
    outcome_->error = ended_by_;
    outcome_->job_goes_on = job == Job::kGoesOn;
    outcome_->changed.notify_all();
  }
  for (const auto& [call, operation] : operations_) {
    operation->finish(ended_by_);
  }
  operations_.clear();
  bye_came_.cancel();
}

void Session::Impl::check() const {
  const std::lock_guard lock(outcome_->mutex);
  if (outcome_->error) {
    std::rethrow_exception(outcome_->error);
  }
}

bool Session::Impl::may_rejoin() const {
  const std::lock_guard lock(outcome_->mutex);
  return outcome_->error && outcome_->job_goes_on;
}

void Session::Impl::close() {
  wait_for(say_bye());
  const std::lock_guard lock(outcome_->mutex);
  outcome_->is_closed = true;
}

asio::awaitable<void> Session::Impl::say_bye() {
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->send({.header = {.type = FrameType::kBye}});
  }
  const auto deadline = Clock::now() + milliseconds(options_.timeout_ms);
  while (std::find(has_said_bye_.begin(), has_said_bye_.end(), false) != has_said_bye_.end()) {
    if (ended_by_) {
      std::rethrow_exception(ended_by_);
    }
    if (Clock::now() >= deadline) {
      fail(ErrorCode::kTimeout, "close: a parameter server has not answered for {:.1f} s", options_.timeout_ms / 1e3);
    }
    error_code ended;
    bye_came_.expires_at(deadline);
    co_await bye_came_.async_wait(asio::redirect_error(asio::use_awaitable, ended));
  }
  failing_ = true;  // nothing is watched any more
  for (const std::shared_ptr<Connection>& connection : connections_) {
    connection->close();
  }
}

void Session::Impl::leave() {
  {
    const std::lock_guard lock(outcome_->mutex);
    if (outcome_->is_closed) {
      return;
    }
  }
  wait_for(end_early());
}

asio::awaitable<void> Session::Impl::end_early() {
  if (!failing_) {
    failing_ = true;
    const Error error(ErrorCode::kPeerLost,
                      fmt::format("rank {} ({}) left the job before its end", rank_, options_.name));
    co_await end_session(error, Job::kOver);
  }
  while (!ended_by_) {
    asio::steady_timer pause(io_, milliseconds(5));
    co_await pause.async_wait(asio::use_awaitable);
  }
}

Session::Session(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Session::~Session() { impl_->leave(); }
int Session::rank() const { return static_cast<int>(impl_->rank()); }
int Session::world() const { return static_cast<int>(impl_->world()); }
Work Session::sum(std::string name, BufferView data, ElementRange wanted) {
  return impl_->sum(std::move(name), data, wanted);
}
Work Session::gather(std::string name, std::span<std::byte> bytes, std::vector<ElementRange> owned) {
  return impl_->gather(std::move(name), bytes, std::move(owned));
}
void Session::check() const { impl_->check(); }
bool Session::may_rejoin() const { return impl_->may_rejoin(); }
void Session::close() { impl_->close(); }

}  // namespace lockstep::server
