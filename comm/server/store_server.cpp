#include "comm/server/store_server.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "comm/server/admission.h"
#include "comm/server/store_server_impl.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;

// The first line in which two texts differ.
std::string first_difference(const std::string& theirs, const std::string& whose, const std::string& ours) {
  const std::size_t at = static_cast<std::size_t>(
      std::mismatch(theirs.begin(), theirs.end(), ours.begin(), ours.end()).first - theirs.begin());
  const auto line = [at](const std::string& text) {
    const std::size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::size_t word = std::min(text.find_first_not_of(' ', begin), end);
    return text.substr(word, end - word - (end > word && text[end - 1] == ',' ? 1 : 0));
  };
  return fmt::format("{} where {} has {}", line(theirs), whose, line(ours));
}

}  // namespace

StoreServer::Impl::Impl(Options options)
    : options_(std::move(options)),
      listener_(io_,
                {.token = options_.token,
                 .listen = options_.listen,
                 .port = options_.port,
                 .tls = options_.tls,
                 .say = options_.say},
                [this](std::shared_ptr<Connection> connection, std::vector<std::byte> hello) {
                  return serve(std::move(connection), std::move(hello));
                }),
      roster_({.workers = options_.workers,
               .mode = options_.mode,
               .names_lead = options_.part == 0,
               .rejoin = options_.rejoin}) {
  expect_part(options_.part, options_.parts);
  if (!options_.state.empty()) {
    journal_.emplace(options_.state, options_.part, options_.parts);
    store_ = Store::recover(*journal_, options_.workers, options_.make_rule);
  }
  if (store_) {
    roster_.watch(store_->state(), true);
    is_recovered_ = true;
    has_begun_ = true;
    say(LogLevel::kInfo,
        fmt::format("goes on after {} updates, from {}", store_->state().applied, options_.state.string()));
  }
  asio::co_spawn(io_, tick(), asio::detached);
  thread_ = std::thread([this] { io_.run(); });
}

// Connections.

asio::awaitable<void> StoreServer::Impl::serve(std::shared_ptr<Connection> connection, std::vector<std::byte> hello) {
  Worker* worker = nullptr;
  try {
    co_await introduce(connection, decode_hello(hello, options_.mode), worker);
  } catch (const Error&) {
    if (worker != nullptr && worker->connection == connection) {
      worker->connection = nullptr;
      note_who_is_here();
    }
    throw;
  }
  std::string why;
  try {
    co_await serve_frames(*worker, connection);
  } catch (const Error& error) {
    why = error.what();
  }
  leave(*worker, connection, why);
}

asio::awaitable<void> StoreServer::Impl::introduce(std::shared_ptr<Connection> connection, Hello hello,
                                                   Worker*& worker) {
  worker = &admit(connection, hello);
  // Between the two it reads its data.
  const Open request = co_await receive_open(connection, patience_of(hello));
  open(*worker, connection, request);
}

asio::awaitable<Open> StoreServer::Impl::receive_open(std::shared_ptr<Connection> connection, milliseconds limit) {
  const asio::steady_timer deadline = connection->close_in(limit);
  const FrameHeader header = co_await connection->read_header();
  if (header.type == FrameType::kFail) {
    const std::vector<std::byte> text = co_await connection->read_small_payload(header);
    throw Error(decode_error(text));
  }
  require(header.type == FrameType::kOpen, "server: a frame of type {}, expected one of type {}",
          static_cast<int>(header.type), static_cast<int>(FrameType::kOpen));
  std::vector<std::byte> payload(header.payload_bytes);
  co_await connection->read_payload(header, payload);
  co_return decode_open(payload);
}

StoreServer::Impl::Worker& StoreServer::Impl::admit(const std::shared_ptr<Connection>& connection, const Hello& hello) {
  const auto world = static_cast<std::uint32_t>(roster_.workers().size());
  if (cause_) {
    throw Error(*cause_);
  }
  require(!over_, "server: this server's job is over");
  expect_same_part(hello, options_.part, options_.parts);
  require(hello.world == 0 || hello.world == world, "server: the worker is one of {}, but the server waits for {}",
          hello.world, world);
  std::uint32_t rank = hello.rank;
  if (rank == kNoRank) {
    const auto free_place = std::find_if(roster_.workers().begin(), roster_.workers().end(), [](const Worker& other) {
      return other.connection == nullptr && !other.has_said_bye;
    });
    require(free_place != roster_.workers().end(), "server: all {} workers are here already", world);
    rank = free_place->rank;
  }
  require(rank < world, "server: the worker has rank {}, expected one below {}", rank, world);
  Worker& worker = roster_.workers()[rank];
  if (worker.connection == nullptr) {
    worker.connection = connection;  // keeps the place until the worker opens the store
    worker.is_open = false;
    worker.name = fmt::format("rank {} ({})", rank, hello.name);
    worker.patience = patience_of(hello);
  }
  note_who_is_here();
  connection->send({.type = FrameType::kWelcome}, encode(Welcome{rank, world}));
  return worker;
}

void StoreServer::Impl::open(Worker& worker, const std::shared_ptr<Connection>& connection, const Open& open) {
  require(worker.connection == connection || worker.id == open.id, "server: {} is here already", worker.name);
  if (!store_) {
    make_store(open);
  }
  expect_same(worker, open);
  if (worker.connection != connection) {
    worker.connection->close();  // the same process over a new link: the old one is dead
    worker.connection = connection;
  }
  const bool is_back = worker.has_joined;
  worker.is_open = true;
  worker.id = open.id;
  worker.has_joined = true;
  worker.has_reached_end = open.has_reached_end != 0;
  worker.has_said_bye = false;
  worker.pull.reset();
  worker.is_sending = false;
  worker.gradient.resize(store_->state().range.size());
  if (open.leads != 0) {
    roster_.claim_lead(worker);
    has_been_led_ = true;
  }
  const std::uint64_t missing = roster_.missing_joins();
  say(LogLevel::kInfo,
      is_back ? fmt::format("{} is here, after {} steps", worker.name, roster_.completed(worker))
              : fmt::format("{} has come, {}", worker.name,
                            missing > 0 ? fmt::format("{} of {} are missing", missing, roster_.workers().size())
                                        : fmt::format("all {} are here", roster_.workers().size())));
  send_opened(worker);
  answer_pulls();
}

void StoreServer::Impl::make_store(const Open& open) {
  const ElementRange range =
      range_of_part(open.elements, static_cast<std::size_t>(options_.part), static_cast<std::size_t>(options_.parts));
  try {
    store_ =
        std::make_unique<Store>(open, range, options_.workers, options_.make_rule, journal_ ? &*journal_ : nullptr);
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::kUsage, "server: no memory for {} parameters, their moments and a gradient of each worker",
         range.size());
  }
  roster_.watch(store_->state(), false);
}

// All workers train the same thing, also those of a state that was kept.
void StoreServer::Impl::expect_same(const Worker& worker, const Open& open) const {
  const StoreState& state = store_->state();
  const std::string folder = options_.state.string();
  const std::string whose = is_recovered_ ? fmt::format("the state in {}", folder) : "the first worker";
  const std::string advice =
      is_recovered_ ? fmt::format("; when that is another job's, remove {} or give this one another --state", folder)
                    : "";
  require(open.description == state.description, "server: {} has {}{}", worker.name,
          first_difference(open.description, whose, state.description), advice);
  require(open.elements == state.elements && open.steps == state.steps && open.max_staleness == state.max_staleness,
          "server: {} has {} parameters, {} steps and comm.max_staleness {} where {} has {}, {} and {}{}", worker.name,
          open.elements, open.steps, open.max_staleness, whose, state.elements, state.steps, state.max_staleness,
          advice);
}

void StoreServer::Impl::note_who_is_here() {
  const std::lock_guard lock(mutex_);
  has_workers_ = std::any_of(roster_.workers().begin(), roster_.workers().end(),
                             [](const Worker& worker) { return worker.connection != nullptr; });
  has_begun_ |= has_workers_;
}

void StoreServer::Impl::leave(Worker& worker, const std::shared_ptr<Connection>& connection, const std::string& why) {
  if (worker.connection != connection) {
    return;  // it is here over a newer one
  }
  worker.connection = nullptr;
  note_who_is_here();
  worker.is_open = false;
  worker.pull.reset();
  worker.gone_since = Clock::now();
  if (!worker.has_said_bye && !over_) {
    say(LogLevel::kWarning,
        fmt::format("{} is gone after {} steps: {}; the others go on", worker.name, roster_.completed(worker), why));
  }
  answer_pulls();
  end_if_over();
}

StoreServer::StoreServer(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
StoreServer::~StoreServer() = default;
std::uint16_t StoreServer::port() const { return impl_->port(); }
bool StoreServer::has_begun() const { return impl_->has_begun(); }
bool StoreServer::has_workers() const { return impl_->has_workers(); }
std::optional<StoreServer::End> StoreServer::wait_for_end(milliseconds time) { return impl_->wait_for_end(time); }
void StoreServer::stop() { impl_->stop(); }
void StoreServer::end(const std::string& cause) { impl_->end(cause); }

}  // namespace lockstep::server
