#include "comm/server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "comm/server/admission.h"
#include "comm/server/server_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;

// What may lie here of one worker's pushes and gifts before no more is read from it: a few buckets.
constexpr std::size_t kMaxHeldBytes = std::size_t{64} << 20;
// A worker's buffers, and more than a few is a mistake.
constexpr std::size_t kMaxMemories = 4096;

}  // namespace

Server::Impl::Impl(Options options) : options_(std::move(options)) {
  require(options_.workers >= 1 && options_.workers <= static_cast<int>(kMaxWorkers),
          "server: {} workers, expected 1 to {}", options_.workers, kMaxWorkers);
  expect_part(options_.part, options_.parts);
  require(options_.min_workers >= 0 && options_.min_workers <= options_.workers,
          "server: at least {} workers, expected at most the job's {}", options_.min_workers, options_.workers);
  listener_.emplace(io_,
                    Listener::Options{.token = options_.token,
                                      .listen = options_.listen,
                                      .port = options_.port,
                                      .tls = options_.tls,
                                      .say = options_.say},
                    [this](std::shared_ptr<Connection> connection, std::vector<std::byte> hello) {
                      return serve(std::move(connection), std::move(hello));
                    });
  asio::co_spawn(io_, watch(), asio::detached);
  thread_ = std::thread([this] { io_.run(); });
}

asio::awaitable<void> Server::Impl::serve(std::shared_ptr<Connection> connection, std::vector<std::byte> hello) {
  const std::shared_ptr<Worker> worker = admit(connection, decode_hello(hello));
  co_await serve_worker(worker);
}

std::shared_ptr<Server::Impl::Worker> Server::Impl::admit(const std::shared_ptr<Connection>& connection,
                                                          const Hello& hello) {
  if (cause_) {
    throw Error(*cause_);
  }
  require(!over_, "server: this server's job is over");
  expect_same_part(hello, options_.part, options_.parts);
  if (leads()) {
    last_group_ = std::max(last_group_, hello.group);
  }
  require(leads() || (hello.group != 0 && hello.rank < hello.world),
          "server: a hello for group {} as rank {} of {} to part {}", hello.group, hello.rank, hello.world,
          options_.part + 1);
  const bool fits = hello.world == 0 || hello.world == wanted() || (!leads() && hello.world < wanted());
  require(fits, "server: the worker is one of {}, but the server waits for {}", hello.world, wanted());
  require(!hello.insists || hello.rank < wanted(), "server: the worker has rank {}, expected one below {}", hello.rank,
          wanted());

  auto worker = std::make_shared<Worker>();
  worker->hello = hello;
  worker->name = hello.rank == kNoRank ? hello.name : fmt::format("rank {} ({})", hello.rank, hello.name);
  worker->connection = connection;
  worker->account = std::make_shared<Account>(io_);
  worker->patience = patience_of(hello);
  worker->came = Clock::now();
  workers_.push_back(worker);
  {
    const std::lock_guard lock(mutex_);
    has_begun_ = true;
    has_workers_ = true;
  }
  const std::size_t here = guests().size();
  if (!group_ && here < wanted()) {
    say(LogLevel::kInfo, fmt::format("{} has come, {} of {} are missing", worker->name, wanted() - here, wanted()));
  }
  return worker;
}

asio::awaitable<void> Server::Impl::serve_worker(std::shared_ptr<Worker> worker) {
  see_to_guests();
  std::string why;
  try {
    co_await receive(worker);
  } catch (const Error& error) {
    why = error.what();
    if (error.code() == ErrorCode::kUsage && worker->member) {
      finish(error);
    }
  }
  lose(*worker, why);
  worker->is_dismissed = true;
  co_await worker->connection->flush(kFarewell);
  worker->connection->close();
  workers_.remove(worker);
  const std::lock_guard lock(mutex_);
  has_workers_ = !workers_.empty();
}

// Returns never. Of a worker that is dismissed what still comes is dropped: a connection closed with unread bytes may
// take along what the worker has not read.
asio::awaitable<void> Server::Impl::receive(std::shared_ptr<Worker> worker) {
  while (true) {
    while (!co_await worker->account->wait_for_room(kMaxHeldBytes, worker->patience)) {
      if (worker->member) {
        blame(*worker, {.type = FrameType::kWho, .call = worker->member->call, .rank = kNoRank},
              {static_cast<std::uint32_t>(worker->patience.count()), fmt::format("call {}", worker->member->call)});
      }
    }
    worker->reads_since = Clock::now();
    worker->is_read = true;
    const FrameHeader header = co_await worker->connection->read_header();
    if (header.type == FrameType::kPush || header.type == FrameType::kGive) {
      co_await receive_data(worker, header);
    } else {
      const std::vector<std::byte> payload = co_await worker->connection->read_small_payload(header);
      handle(*worker, header, payload);
    }
    worker->is_read = false;
  }
}

asio::awaitable<void> Server::Impl::receive_data(std::shared_ptr<Worker> worker, FrameHeader header) {
  std::shared_ptr<Block> block;
  Place place;
  if (header.wire == Wire::kInMemory) {
    place = decode_place(co_await worker->connection->read_small_payload(header));
  } else {
    block = std::make_shared<Block>(header.payload_bytes, worker->account);
    co_await worker->connection->read_payload(header, block->bytes());
  }
  if (worker->is_dismissed) {
    co_return;
  }
  if (!worker->member) {
    fail(ErrorCode::kCorrupt, "server: data before a welcome");
  }
  if (!block) {
    block = block_at(*worker, place, header);
  }
  const std::shared_ptr<Group::Member> member = worker->member;
  group_->enter(*member, header.call);
  if (header.type == FrameType::kPush) {
    group_->push(*member, header, block);
  } else {
    group_->give(*member, header, block);
  }
}

std::shared_ptr<Block> Server::Impl::block_at(const Worker& worker, const Place& place, const FrameHeader& header) {
  const auto memory = worker.memories.find(place.memory);
  if (memory == worker.memories.end()) {
    fail(ErrorCode::kCorrupt, "server: a contribution in shared memory {}, which is not there", place.memory);
  }
  const std::size_t element_bytes = size_of(header.dtype);
  return std::make_shared<Block>(
      memory->second->part(place.offset, (header.end - header.begin) * element_bytes, element_bytes), memory->second,
      worker.account);
}

void Server::Impl::share(Worker& worker, const SharedMemory& memory) {
  if (memory.bytes == 0) {
    worker.memories.erase(memory.number);
    return;
  }
  MemoryUse use{.number = memory.number};
  try {
    if (worker.connection->stays_on_machine() && worker.memories.size() < kMaxMemories) {
      worker.memories[memory.number] = std::make_shared<OthersMemory>(memory, worker.member->rank);
      use.is_used = true;
    }
  } catch (const Error& error) {
    if (!std::exchange(worker.is_told_of_memory, true)) {
      say(LogLevel::kInfo, fmt::format("{}: sums travel over its connection: {}", worker.name, error.what()));
    }
  }
  worker.connection->send({.type = FrameType::kMemory}, encode(use));
}

void Server::Impl::handle(Worker& worker, const FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == FrameType::kAlive) {
    return;
  }
  if (header.type == FrameType::kFail) {
    const Error error = decode_error(payload);
    if (worker.is_dismissed && worker.group != last_group_) {
      return;
    }
    const bool all_have_left = ++left_ >= last_world_;
    if (all_have_left || (error.code() == ErrorCode::kUsage && !worker.is_dismissed)) {
      finish(error);
    } else {
      end_group(error);
    }
    return;
  }
  if (worker.is_dismissed) {
    return;
  }
  if (!worker.member) {
    fail(ErrorCode::kCorrupt, "server: a frame of type {} before a welcome", static_cast<int>(header.type));
  }
  if (header.type == FrameType::kTake) {
    group_->enter(*worker.member, header.call);
  } else if (header.type == FrameType::kMemory) {
    share(worker, decode_shared_memory(payload));
  } else if (header.type == FrameType::kWho) {
    blame(worker, header, decode_who(payload));
  } else if (header.type == FrameType::kRegroup) {
    end_group(decode_error(payload));
  } else if (header.type == FrameType::kBye) {
    group_->say_bye(*worker.member);
    if (group_->have_all_said_bye() && !over_) {
      over_ = true;
      asio::co_spawn(io_, close_all({.orderly = true, .cause = ""}), asio::detached);
    }
  } else {
    fail(ErrorCode::kCorrupt, "server: a frame of type {}, which workers do not send", static_cast<int>(header.type));
  }
}

void Server::Impl::blame(Worker& worker, const FrameHeader& header, const Who& who) {
  if (const auto culprit = group_->blame(*worker.member, header, who)) {
    end_group(culprit->error);
  }
}

Server::Server(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Server::~Server() = default;
std::uint16_t Server::port() const { return impl_->port(); }
bool Server::has_begun() const { return impl_->has_begun(); }
bool Server::has_workers() const { return impl_->has_workers(); }
std::optional<Server::End> Server::wait_for_end(std::chrono::milliseconds time) { return impl_->wait_for_end(time); }
void Server::end(const std::string& cause) { impl_->end(cause); }

}  // namespace lockstep::server
