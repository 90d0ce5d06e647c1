#include "comm/server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/control/handshake.h"
#include "comm/server/block.h"
#include "comm/server/connection.h"
#include "comm/server/piece_sum.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

// Connections that have not shown that they belong to the job. When more come, the oldest goes: a job's own take a
// millisecond.
constexpr std::size_t kMaxPending = 64;
// What may lie here of one worker's pushes and gifts before no more is read from it: a few buckets.
constexpr std::size_t kMaxHeldBytes = std::size_t{64} << 20;
constexpr milliseconds kPauseWithoutDescriptors{100};
// Of a worker that cannot wait at all, nobody could be asked.
constexpr milliseconds kLeastPatience{10};
// How long workers have to take the last frame before they are cut off.
constexpr milliseconds kFarewell{1'000};
// Refused connections that are told of; a flood of them is not.
constexpr int kMostRefusalsSaid = 10;

}  // namespace

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

  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] bool has_begun() const {
    const std::lock_guard lock(mutex_);
    return has_begun_;
  }
  [[nodiscard]] std::optional<End> wait_for_end(milliseconds time) {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, time, [this] { return end_.has_value(); });
    return end_;
  }
  void end(const std::string& cause) {
    asio::post(io_, [this, cause] { finish(Error(ErrorCode::kPeerLost, cause)); });
  }

 private:
  template <typename T>
  using Awaitable = asio::awaitable<T>;
  using Pending = std::list<tcp::socket>;

  // Bytes for a worker that has not yet come to the call they belong to.
  struct Gift {
    FrameHeader header;
    std::shared_ptr<Block> block;
  };
  struct Worker {
    std::uint32_t rank = 0;
    std::string name;  // "rank 1 (host node07, process 4711)"
    std::shared_ptr<Connection> connection;
    std::shared_ptr<Account> account;
    milliseconds patience{0};
    std::uint64_t call = 0;  // the newest it is in
    std::deque<Gift> gifts;
    bool has_said_bye = false;
    bool is_gone = false;  // its connection has ended
  };
  struct Piece {
    FrameHeader first;  // of the contribution that came first: the others have to agree with it
    PieceSum<std::shared_ptr<Block>> sum;
    std::vector<bool> has_come;
    std::vector<ElementRange> wanted;
  };

  Awaitable<void> accept_all();
  Awaitable<void> serve(Pending::iterator place);
  Awaitable<void> receive_hello(std::shared_ptr<Connection> connection, std::shared_ptr<Worker>& worker);
  Awaitable<void> serve_worker(std::shared_ptr<Worker> worker);
  std::shared_ptr<Worker> admit(const std::shared_ptr<Connection>& connection, const Hello& hello);
  void enter(Worker& worker, std::uint64_t call);
  void push(Worker& worker, const FrameHeader& header, std::shared_ptr<Block> block);
  void send_sum(const FrameHeader& header, const Piece& piece, const std::shared_ptr<Block>& sum);
  void give(const Worker& worker, const FrameHeader& header, const std::shared_ptr<Block>& block);
  void pass_on(Worker& to, const Gift& gift);
  void blame(const Worker& asker, const FrameHeader& header, const Who& who);
  [[nodiscard]] std::string suspect(const Worker& asker, const FrameHeader& header) const;
  [[nodiscard]] std::string who_is(std::uint32_t rank) const;
  void say_bye(Worker& worker);
  void finish(const Error& error);
  Awaitable<void> close_all(End end);
  void say(LogLevel level, const std::string& text) const {
    if (options_.say) {
      options_.say(level, text);
    }
  }

  const Options options_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  std::uint16_t port_ = 0;
  Pending pending_;
  int refusals_ = 0;
  std::vector<std::shared_ptr<Worker>> workers_;                     // by rank; null: has not come
  std::map<std::pair<std::uint64_t, std::uint64_t>, Piece> pieces_;  // by call and first element
  bool over_ = false;
  std::optional<Error> cause_;  // unless it ended in order

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  bool has_begun_ = false;
  std::optional<End> end_;
  std::thread thread_;
};

Server::Impl::Impl(Options options) : options_(std::move(options)), acceptor_(io_) {
  require(options_.workers >= 1 && options_.workers <= static_cast<int>(kMaxWorkers),
          "server: {} workers, expected 1 to {}", options_.workers, kMaxWorkers);
  require(options_.parts >= 1 && options_.part >= 0 && options_.part < options_.parts,
          "server: part {} of {}, expected one of 1 to {}", options_.part + 1, options_.parts, options_.parts);
  workers_.resize(static_cast<std::size_t>(options_.workers));
  error_code error;
  const asio::ip::address address = asio::ip::make_address(options_.listen, error);
  require(!error, "server: {} is no numeric address to listen on", options_.listen);
  const tcp::endpoint where(address, options_.port);
  const auto check = [&] {
    if (error) {
      fail(ErrorCode::kIo, "server: cannot listen on {} port {}: {}", options_.listen, options_.port, error.message());
    }
  };
  acceptor_.open(where.protocol(), error);
  check();
  acceptor_.set_option(asio::socket_base::reuse_address(true), error);
  check();
  acceptor_.bind(where, error);
  check();
  acceptor_.listen(asio::socket_base::max_listen_connections, error);
  check();
  port_ = acceptor_.local_endpoint().port();
  asio::co_spawn(io_, accept_all(), asio::detached);
  thread_ = std::thread([this] { io_.run(); });
}

asio::awaitable<void> Server::Impl::accept_all() {
  while (true) {
    error_code error;
    tcp::socket socket(io_);
    co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      // Out of file descriptors, for one: what is open may end.
      asio::steady_timer pause(io_, kPauseWithoutDescriptors);
      co_await pause.async_wait(asio::use_awaitable);
      continue;
    }
    if (pending_.size() >= kMaxPending) {
      pending_.front().close(error);
    }
    pending_.push_back(std::move(socket));
    asio::co_spawn(io_, serve(std::prev(pending_.end())), asio::detached);
  }
}

asio::awaitable<void> Server::Impl::serve(Pending::iterator place) {
  error_code error;
  const tcp::endpoint from = place->remote_endpoint(error);
  std::shared_ptr<Connection> connection;
  std::string problem;
  try {
    connection = co_await Connection::accept(*place, options_.token);
  } catch (const Error& refusal) {
    problem = refusal.what();
  }
  pending_.erase(place);
  std::shared_ptr<Worker> worker;
  if (connection) {
    try {
      co_await receive_hello(connection, worker);
    } catch (const Error& refusal) {
      problem = refusal.what();
      connection->send_last({.type = FrameType::kFail}, encode(refusal));
    }
    if (!worker) {
      co_await connection->flush(kFarewell);
      connection->close();
    }
  }
  if (worker) {
    co_await serve_worker(worker);
  } else if (++refusals_ <= kMostRefusalsSaid) {
    say(LogLevel::kWarning, fmt::format("refused a connection from {}: {}{}", from.address().to_string(), problem,
                                        refusals_ == kMostRefusalsSaid ? "; further ones are not mentioned" : ""));
  }
}

// The first frame has a deadline, too.
asio::awaitable<void> Server::Impl::receive_hello(std::shared_ptr<Connection> connection,
                                                  std::shared_ptr<Worker>& worker) {
  asio::steady_timer deadline(io_, control::kHandshakeDeadline);
  deadline.async_wait([connection](const error_code& cancelled) {
    if (!cancelled) {
      connection->close();
    }
  });
  const FrameHeader header = co_await connection->read_header();
  require(header.type == FrameType::kHello, "server: the first frame is of type {}, expected a hello",
          static_cast<int>(header.type));
  const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
  deadline.cancel();
  worker = admit(connection, decode_hello(payload));
}

std::shared_ptr<Server::Impl::Worker> Server::Impl::admit(const std::shared_ptr<Connection>& connection,
                                                          const Hello& hello) {
  const auto world = static_cast<std::uint32_t>(workers_.size());
  if (cause_) {
    throw Error(*cause_);
  }
  require(!over_, "server: this server's job is over");
  require(hello.part == static_cast<std::uint32_t>(options_.part) &&
              hello.parts == static_cast<std::uint32_t>(options_.parts),
          "server: the worker takes this server for part {}/{}, but it was started with --part {}/{}; comm.servers "
          "lists all servers in the order of their parts",
          hello.part + std::uint64_t{1}, hello.parts, options_.part + 1, options_.parts);
  require(hello.world == 0 || hello.world == world, "server: the worker is one of {}, but the server waits for {}",
          hello.world, world);
  const auto free_place = std::find(workers_.begin(), workers_.end(), nullptr);
  require(hello.rank != kNoRank || free_place != workers_.end(), "server: all {} workers are here already", world);
  const auto rank = hello.rank == kNoRank ? static_cast<std::uint32_t>(free_place - workers_.begin()) : hello.rank;
  require(rank < world, "server: the worker has rank {}, expected one below {}", rank, world);
  require(workers_[rank] == nullptr, "server: {} is here already, and {} has the same rank", who_is(rank), hello.name);

  auto worker = std::make_shared<Worker>();
  worker->rank = rank;
  worker->name = fmt::format("rank {} ({})", rank, hello.name);
  std::replace_if(
      worker->name.begin(), worker->name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
  worker->connection = connection;
  worker->account = std::make_shared<Account>(io_);
  worker->patience = std::max(milliseconds(hello.timeout_ms), kLeastPatience);
  workers_[rank] = worker;
  {
    const std::lock_guard lock(mutex_);
    has_begun_ = true;
  }
  connection->send({.type = FrameType::kWelcome}, encode(Welcome{rank, world}));
  const auto missing = std::count(workers_.begin(), workers_.end(), nullptr);
  say(LogLevel::kInfo, missing > 0 ? fmt::format("{} has come, {} of {} are missing", worker->name, missing, world)
                                   : fmt::format("{} has come, all {} are here", worker->name, world));
  return worker;
}

asio::awaitable<void> Server::Impl::serve_worker(std::shared_ptr<Worker> worker) {
  std::string why;
  try {
    // Once the job is over, what still comes is dropped: a connection closed with unread bytes may take along what the
    // worker has not read.
    while (true) {
      while (!co_await worker->account->wait_for_room(kMaxHeldBytes, worker->patience)) {
        blame(*worker, {.type = FrameType::kWho, .call = worker->call, .rank = kNoRank},
              {static_cast<std::uint32_t>(worker->patience.count()), fmt::format("call {}", worker->call)});
      }
      const FrameHeader header = co_await worker->connection->read_header();
      if (header.type == FrameType::kPush || header.type == FrameType::kGive) {
        const auto block = std::make_shared<Block>(header.payload_bytes, worker->account);
        co_await worker->connection->read_payload(header, block->bytes());
        if (over_) {
          continue;
        }
        enter(*worker, header.call);
        if (header.type == FrameType::kPush) {
          push(*worker, header, block);
        } else {
          give(*worker, header, block);
        }
        continue;
      }
      const std::vector<std::byte> payload = co_await worker->connection->read_small_payload(header);
      if (header.type == FrameType::kTake) {
        enter(*worker, header.call);
      } else if (header.type == FrameType::kWho) {
        blame(*worker, header, decode_who(payload));
      } else if (header.type == FrameType::kFail) {
        finish(decode_error(payload));
      } else if (header.type == FrameType::kBye) {
        say_bye(*worker);
      } else {
        fail(ErrorCode::kCorrupt, "server: a frame of type {}, which workers do not send",
             static_cast<int>(header.type));
      }
    }
  } catch (const Error& error) {
    why = error.what();
  }
  if (!worker->has_said_bye) {
    finish(Error(ErrorCode::kPeerLost, fmt::format("{} is gone: {}", worker->name, why)));
  }
  co_await worker->connection->flush(kFarewell);
  worker->connection->close();
  worker->is_gone = true;
}

// Frames of a call show that the worker is ready to receive what belongs to it.
void Server::Impl::enter(Worker& worker, std::uint64_t call) {
  if (call < worker.call) {
    fail(ErrorCode::kCorrupt, "server: a frame of call {} after one of call {}", call, worker.call);
  }
  worker.call = call;
  while (!worker.gifts.empty() && worker.gifts.front().header.call <= call) {
    pass_on(worker, worker.gifts.front());
    worker.gifts.pop_front();
  }
}

void Server::Impl::push(Worker& worker, const FrameHeader& header, std::shared_ptr<Block> block) {
  const auto place = pieces_.try_emplace({header.call, header.begin},
                                         Piece{.first = header,
                                               .sum = {workers_.size(), header.end - header.begin, header.dtype},
                                               .has_come = std::vector<bool>(workers_.size()),
                                               .wanted = std::vector<ElementRange>(workers_.size())});
  Piece& piece = place.first->second;
  const FrameHeader& first = piece.first;
  if (header.rank != worker.rank || piece.has_come[worker.rank]) {
    fail(ErrorCode::kCorrupt, "server: elements [{}, {}) of call {} for rank {}, twice or from another", header.begin,
         header.end, header.call, header.rank);
  }
  if (header.count != first.count || header.dtype != first.dtype || header.end != first.end) {
    finish(Error(ErrorCode::kUsage,
                 fmt::format("sum: {} adds {} {}, but {} adds {} {} (call {}); every rank makes the same calls",
                             worker.name, header.count, name_of(header.dtype), who_is(first.rank), first.count,
                             name_of(first.dtype), header.call)));
    return;
  }
  piece.has_come[worker.rank] = true;
  piece.wanted[worker.rank] = {header.wanted_begin, header.wanted_end};
  if (const auto sum = piece.sum.add(worker.rank, std::move(block))) {
    send_sum(header, piece, *sum);
    pieces_.erase(place.first);
  }
}

void Server::Impl::send_sum(const FrameHeader& header, const Piece& piece, const std::shared_ptr<Block>& sum) {
  const std::size_t element_bytes = size_of(header.dtype);
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::uint64_t> hashes;  // most often all want the same
  for (const std::shared_ptr<Worker>& worker : workers_) {
    const ElementRange wanted = piece.wanted[worker->rank];
    if (wanted.size() == 0) {
      continue;
    }
    const std::span<const std::byte> payload =
        sum->bytes().subspan((wanted.begin - header.begin) * element_bytes, wanted.size() * element_bytes);
    const auto hash = hashes.try_emplace({wanted.begin, wanted.end}, 0);
    if (hash.second) {
      hash.first->second = payload_hash_of(payload);
    }
    FrameHeader answer{.type = FrameType::kSum, .dtype = header.dtype, .call = header.call};
    answer.count = header.count;
    answer.begin = wanted.begin;
    answer.end = wanted.end;
    worker->connection->send({.header = answer, .payload = payload, .owner = sum, .payload_hash = hash.first->second});
  }
}

void Server::Impl::give(const Worker& worker, const FrameHeader& header, const std::shared_ptr<Block>& block) {
  if (header.rank != worker.rank) {
    fail(ErrorCode::kCorrupt, "server: a gift in the name of rank {}", header.rank);
  }
  const Gift gift{header, block};
  for (std::uint32_t rank = 0; rank < workers_.size(); ++rank) {
    if (rank == worker.rank) {
      continue;
    }
    if (!workers_[rank]) {
      fail(ErrorCode::kCorrupt, "server: a gift before rank {} has come", rank);
    }
    if (workers_[rank]->call >= header.call) {
      pass_on(*workers_[rank], gift);
    } else {
      workers_[rank]->gifts.push_back(gift);
    }
  }
}

void Server::Impl::pass_on(Worker& to, const Gift& gift) {
  to.connection->send({.header = gift.header,
                       .payload = gift.block->bytes(),
                       .owner = gift.block,
                       .payload_hash = gift.header.payload_hash});
}

std::string Server::Impl::who_is(std::uint32_t rank) const {
  return workers_[rank] ? workers_[rank]->name : fmt::format("rank {}, which has not come,", rank);
}

// Who keeps `asker` waiting in this call: a rank that has not come, has not got so far, or has not sent its
// contribution. Empty when everything is there that this server could wait for.
std::string Server::Impl::suspect(const Worker& asker, const FrameHeader& header) const {
  for (std::uint32_t rank = 0; rank < workers_.size(); ++rank) {
    if (!workers_[rank] || workers_[rank]->call < header.call) {
      return who_is(rank);
    }
  }
  for (const auto& [place, piece] : pieces_) {
    for (std::uint32_t rank = 0; rank < workers_.size(); ++rank) {
      if (!piece.has_come[rank] && rank != asker.rank) {
        return who_is(rank);
      }
    }
  }
  const bool knows = header.rank < workers_.size() && header.rank != asker.rank;
  return knows ? who_is(header.rank) : "";
}

void Server::Impl::blame(const Worker& asker, const FrameHeader& header, const Who& who) {
  const std::string culprit = suspect(asker, header);
  if (!culprit.empty()) {
    finish(Error(ErrorCode::kTimeout,
                 fmt::format("{}: {} kept the others waiting for {:.1f} s", who.call, culprit, who.waited_ms / 1e3)));
  }
}

void Server::Impl::say_bye(Worker& worker) {
  worker.has_said_bye = true;
  worker.connection->send(FrameHeader{.type = FrameType::kBye}, {});
  const bool all =
      std::all_of(workers_.begin(), workers_.end(), [](const auto& other) { return other && other->has_said_bye; });
  if (all && !over_) {
    over_ = true;
    asio::co_spawn(io_, close_all({.orderly = true, .cause = ""}), asio::detached);
  }
}

void Server::Impl::finish(const Error& error) {
  if (over_) {
    return;
  }
  over_ = true;
  cause_ = error;
  pieces_.clear();
  for (const std::shared_ptr<Worker>& worker : workers_) {
    if (worker) {
      worker->gifts.clear();
      worker->connection->send_last({.type = FrameType::kFail}, encode(error));
    }
  }
  asio::co_spawn(io_, close_all({.orderly = false, .cause = error.what()}), asio::detached);
}

// Workers end their connections when they have read the last frame.
asio::awaitable<void> Server::Impl::close_all(End end) {
  const auto deadline = Connection::Clock::now() + kFarewell;
  const auto are_gone = [this] {
    return std::all_of(workers_.begin(), workers_.end(), [](const auto& worker) { return !worker || worker->is_gone; });
  };
  asio::steady_timer pause(io_);
  while (!are_gone() && Connection::Clock::now() < deadline) {
    pause.expires_after(milliseconds(5));
    co_await pause.async_wait(asio::use_awaitable);
  }
  const std::lock_guard lock(mutex_);
  end_ = std::move(end);
  ended_.notify_all();
}

Server::Server(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Server::~Server() = default;
std::uint16_t Server::port() const { return impl_->port(); }
bool Server::has_begun() const { return impl_->has_begun(); }
std::optional<Server::End> Server::wait_for_end(std::chrono::milliseconds time) { return impl_->wait_for_end(time); }
void Server::end(const std::string& cause) { impl_->end(cause); }

}  // namespace lockstep::server
