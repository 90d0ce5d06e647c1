#include "comm/server/store_server.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/server/connection.h"
#include "comm/server/listener.h"
#include "comm/server/store_journal.h"
#include "comm/server/store_roster.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using std::chrono::milliseconds;
using Clock = Connection::Clock;

// Of a worker that cannot wait at all, nobody could be asked.
constexpr milliseconds kLeastPatience{10};
constexpr milliseconds kTick{100};
// How long workers have to take the last frame before they are cut off.
constexpr milliseconds kFarewell{1'000};

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

// What a pull is answered with: a copy, so that updates can go on while it is on its way.
struct Image {
  std::uint64_t version = 0;
  std::vector<float> weights;
  std::vector<float> exp_avg;  // empty unless asked for
  std::vector<float> exp_avg_sq;
};

// The first line in which two texts differ.
std::string first_difference(const std::string& theirs, const std::string& ours) {
  const std::size_t at = static_cast<std::size_t>(
      std::mismatch(theirs.begin(), theirs.end(), ours.begin(), ours.end()).first - theirs.begin());
  const auto line = [at](const std::string& text) {
    const std::size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::size_t word = std::min(text.find_first_not_of(' ', begin), end);
    return text.substr(word, end - word);
  };
  return fmt::format("{} where the first worker has {}", line(theirs), line(ours));
}

}  // namespace

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

  using Worker = StoreWorker;

  // A worker's connection, from its first frame to its last.
  Awaitable<void> serve(std::shared_ptr<Connection> connection, std::vector<std::byte> hello);
  Awaitable<void> introduce(std::shared_ptr<Connection> connection, Hello hello, Worker*& worker);
  Awaitable<std::vector<std::byte>> receive(std::shared_ptr<Connection> connection, FrameType type,
                                            milliseconds deadline);
  Awaitable<void> serve_frames(Worker& worker, std::shared_ptr<Connection> connection);
  Awaitable<void> receive_values(std::shared_ptr<Connection> connection, StoreArray array, std::span<float> into);
  Worker& admit(const std::shared_ptr<Connection>& connection, const Hello& hello);
  void open(Worker& worker, const std::shared_ptr<Connection>& connection, const Open& open);
  void leave(Worker& worker, const std::shared_ptr<Connection>& connection, const std::string& why);
  void send_opened(Worker& worker);
  void apply(Worker& worker, const Gradient& gradient);
  void say_bye(Worker& worker);

  // Pulls.
  void answer_pulls();
  void answer(Worker& worker);
  void send_values(Worker& worker, const std::shared_ptr<const Image>& image, StoreArray array,
                   const std::vector<float>& values, bool is_last);
  [[nodiscard]] std::shared_ptr<const Image> image(std::uint32_t arrays);
  [[nodiscard]] std::shared_ptr<const Image> image_ahead(double pushes) const;

  // What time brings about.
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
  asio::io_context io_;
  std::optional<StoreJournal> journal_;
  std::unique_ptr<Store> store_;
  Listener listener_;
  StoreRoster roster_;
  std::shared_ptr<const Image> newest_;
  bool over_ = false;
  std::optional<Error> cause_;

  mutable std::mutex mutex_;
  std::condition_variable ended_;
  bool has_begun_ = false;
  std::optional<End> end_;
  std::thread thread_;
};

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
  require(options_.parts >= 1 && options_.part >= 0 && options_.part < options_.parts,
          "server: part {} of {}, expected one of 1 to {}", options_.part + 1, options_.parts, options_.parts);
  if (!options_.state.empty()) {
    journal_.emplace(options_.state, options_.part, options_.parts);
    store_ = Store::recover(*journal_, options_.workers, options_.make_rule);
  }
  if (store_) {
    roster_.watch(store_->state(), true);
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
  std::exception_ptr refusal;
  try {
    co_await introduce(connection, decode_hello(hello, options_.mode), worker);
  } catch (const Error&) {
    refusal = std::current_exception();
  }
  if (refusal) {
    if (worker != nullptr && worker->connection == connection) {
      worker->connection = nullptr;
    }
    std::rethrow_exception(refusal);
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
  const std::vector<std::byte> payload =
      co_await receive(connection, FrameType::kOpen, std::max(milliseconds(hello.timeout_ms), kLeastPatience));
  open(*worker, connection, decode_open(payload));
}

asio::awaitable<std::vector<std::byte>> StoreServer::Impl::receive(std::shared_ptr<Connection> connection,
                                                                   FrameType type, milliseconds limit) {
  asio::steady_timer deadline(io_, limit);
  deadline.async_wait([connection](const error_code& cancelled) {
    if (!cancelled) {
      connection->close();
    }
  });
  const FrameHeader header = co_await connection->read_header();
  if (header.type == FrameType::kFail) {
    const std::vector<std::byte> text = co_await connection->read_small_payload(header);
    throw Error(decode_error(text));
  }
  require(header.type == type, "server: a frame of type {}, expected one of type {}", static_cast<int>(header.type),
          static_cast<int>(type));
  std::vector<std::byte> payload(header.payload_bytes);
  co_await connection->read_payload(header, payload);
  co_return payload;
}

StoreServer::Impl::Worker& StoreServer::Impl::admit(const std::shared_ptr<Connection>& connection, const Hello& hello) {
  const auto world = static_cast<std::uint32_t>(roster_.workers().size());
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
    std::replace_if(
        worker.name.begin(), worker.name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
    worker.patience = std::max(milliseconds(hello.timeout_ms), kLeastPatience);
  }
  {
    const std::lock_guard lock(mutex_);
    has_begun_ = true;
  }
  connection->send({.type = FrameType::kWelcome}, encode(Welcome{rank, world}));
  return worker;
}

void StoreServer::Impl::open(Worker& worker, const std::shared_ptr<Connection>& connection, const Open& open) {
  require(worker.connection == connection || worker.id == open.id, "server: {} is here already", worker.name);
  if (!store_) {
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
  const StoreState& state = store_->state();
  require(open.description == state.description, "server: {} has {}", worker.name,
          first_difference(open.description, state.description));
  require(open.elements == state.elements && open.steps == state.steps && open.max_staleness == state.max_staleness,
          "server: {} has {} parameters, {} steps and comm.max_staleness {} where the first worker has {}, {} and {}",
          worker.name, open.elements, open.steps, open.max_staleness, state.elements, state.steps, state.max_staleness);
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
  worker.gradient.resize(state.range.size());
  if (open.leads != 0) {
    roster_.claim_lead(worker);
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

void StoreServer::Impl::send_opened(Worker& worker) {
  elect();
  worker.connection->send({.type = FrameType::kOpened}, encode(Opened{.is_initialized = store_->is_started() ? 1U : 0U,
                                                                      .is_durable = journal_ ? 1U : 0U,
                                                                      .lead = roster_.lead().value_or(kNoRank),
                                                                      .applied = store_->state().applied,
                                                                      .completed = roster_.completed(worker)}));
}

void StoreServer::Impl::leave(Worker& worker, const std::shared_ptr<Connection>& connection, const std::string& why) {
  if (worker.connection != connection) {
    return;  // it is here over a newer one
  }
  worker.connection = nullptr;
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

asio::awaitable<void> StoreServer::Impl::serve_frames(Worker& worker, std::shared_ptr<Connection> connection) {
  while (true) {
    const FrameHeader header = co_await connection->read_header();
    std::vector<std::byte> payload(header.payload_bytes);
    co_await connection->read_payload(header, payload);
    if (over_) {
      continue;  // a connection closed with unread bytes may take along what the worker has not read
    }
    if (worker.connection != connection) {
      co_return;
    }
    if (header.type == FrameType::kPull) {
      if (worker.pull) {
        fail(ErrorCode::kCorrupt, "server: a pull before the last one was answered");
      }
      worker.pull = decode_pull(payload);
      worker.pull_since = Clock::now();
      worker.has_reached_end = worker.pull->when == Pull::When::kEnd;
      answer_pulls();
    } else if (header.type == FrameType::kGradient) {
      const Gradient gradient = decode_gradient(payload);
      co_await receive_values(connection, StoreArray::kWeights, worker.gradient);
      if (worker.connection == connection && !over_) {
        apply(worker, gradient);
      }
    } else if (header.type == FrameType::kStart) {
      const Start start = decode_start(payload);
      if (store_->is_started()) {
        fail(ErrorCode::kCorrupt, "server: a second start");
      }
      for (const StoreArray array : {StoreArray::kWeights, StoreArray::kExpAvg, StoreArray::kExpAvgSq}) {
        co_await receive_values(connection, array, store_->values(array));
      }
      try {
        store_->start(start.completed);
        roster_.set_started();
      } catch (const Error& error) {
        finish(error);
        continue;
      }
      send_opened(worker);
      answer_pulls();
    } else if (header.type == FrameType::kWish) {
      roster_.take_wish(decode_wish(payload).ending);
      answer_pulls();
    } else if (header.type == FrameType::kBye) {
      say_bye(worker);
    } else if (header.type == FrameType::kFail) {
      finish(decode_error(payload));
    } else {
      fail(ErrorCode::kCorrupt, "server: a frame of type {}, which workers do not send", static_cast<int>(header.type));
    }
  }
}

asio::awaitable<void> StoreServer::Impl::receive_values(std::shared_ptr<Connection> connection, StoreArray array,
                                                        std::span<float> into) {
  const ElementRange range = store_->state().range;
  for (std::uint64_t at = range.begin; at < range.end;) {
    const FrameHeader header = co_await connection->read_header();
    if (header.type != FrameType::kValues || header.call != static_cast<std::uint64_t>(array) || header.begin != at ||
        header.end > range.end) {
      fail(ErrorCode::kCorrupt, "server: a frame of type {} with elements [{}, {}), expected values from {} on",
           static_cast<int>(header.type), header.begin, header.end, at);
    }
    const std::span<float> part = into.subspan(at - range.begin, header.end - header.begin);
    co_await connection->read_payload(header, std::as_writable_bytes(part));
    at = header.end;
  }
}

void StoreServer::Impl::apply(Worker& worker, const Gradient& gradient) {
  if (!store_->is_started()) {
    fail(ErrorCode::kCorrupt, "server: a gradient before there are weights");
  }
  std::optional<std::uint64_t> stale;
  try {
    stale = store_->apply(worker.rank, gradient, worker.gradient);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kCorrupt) {
      throw;
    }
    finish(error);  // it cannot be written down: nothing may be acknowledged any more
    return;
  }
  if (stale) {
    constexpr double kShareOfNew = 0.25;
    worker.usual_staleness += kShareOfNew * (static_cast<double>(*stale) - worker.usual_staleness);
  }
  worker.connection->send({.type = FrameType::kApplied}, encode(Applied{gradient.step, stale.value_or(0)}));
  answer_pulls();
}

void StoreServer::Impl::say_bye(Worker& worker) {
  worker.has_said_bye = true;
  worker.connection->send(FrameHeader{.type = FrameType::kBye}, {});
  answer_pulls();
  end_if_over();
}

// Pulls.

void StoreServer::Impl::answer_pulls() {
  if (over_ || !store_) {
    return;
  }
  for (Worker& worker : roster_.workers()) {
    if (worker.pull && !worker.is_sending && worker.is_here() && roster_.may_answer(worker)) {
      answer(worker);
    }
  }
}

void StoreServer::Impl::answer(Worker& worker) {
  const Pull pull = *worker.pull;
  const StoreState& state = store_->state();
  const bool ends = pull.when == Pull::When::kStep && roster_.wish() != Ending::kNone;
  worker.pull.reset();
  const std::uint32_t arrays = ends ? 0 : pull.arrays;
  worker.connection->send({.type = FrameType::kPulled}, encode(Pulled{.version = state.applied,
                                                                      .ending = roster_.wish(),
                                                                      .lead = roster_.lead().value_or(kNoRank),
                                                                      .arrays = arrays,
                                                                      .pushes = state.staleness.pushes,
                                                                      .stale_sum = state.staleness.sum,
                                                                      .stale_max = state.staleness.max,
                                                                      .missing = roster_.missing_steps()}));
  if (arrays == 0 || state.range.size() == 0) {
    return;
  }
  worker.is_sending = true;
  const bool is_ahead = pull.when == Pull::When::kStep && worker.usual_staleness > 0;
  const std::shared_ptr<const Image> copy = is_ahead ? image_ahead(worker.usual_staleness) : image(arrays);
  send_values(worker, copy, StoreArray::kWeights, copy->weights, arrays == 1);
  if (arrays == 3) {
    send_values(worker, copy, StoreArray::kExpAvg, copy->exp_avg, false);
    send_values(worker, copy, StoreArray::kExpAvgSq, copy->exp_avg_sq, true);
  }
}

void StoreServer::Impl::send_values(Worker& worker, const std::shared_ptr<const Image>& image, StoreArray array,
                                    const std::vector<float>& values, bool is_last) {
  constexpr std::uint64_t kPiece = kMaxPayloadBytes / sizeof(float);
  const ElementRange range = store_->state().range;
  for (std::uint64_t begin = range.begin; begin < range.end; begin += kPiece) {
    FrameHeader header{.type = FrameType::kValues, .dtype = DType::kF32, .call = static_cast<std::uint64_t>(array)};
    header.count = store_->state().elements;
    header.begin = begin;
    header.end = std::min(begin + kPiece, range.end);
    const std::span<const float> piece = std::span(values).subspan(begin - range.begin, header.end - header.begin);
    std::function<void()> sent;
    if (is_last && header.end == range.end) {
      sent = [this, &worker, connection = worker.connection] {
        if (worker.connection == connection) {
          worker.is_sending = false;
          answer_pulls();
        }
      };
    }
    worker.connection->send(
        {.header = header, .payload = std::as_bytes(piece), .owner = image, .sent = std::move(sent)});
  }
}

// For a step, the weights as they will be when its gradient comes: delay and momentum together make updates swing.
std::shared_ptr<const Image> StoreServer::Impl::image_ahead(double pushes) const {
  const auto made = std::make_shared<Image>();
  made->version = store_->state().applied;
  made->weights = store_->weights_after(pushes);
  return made;
}

// Workers that pull the same version share one copy: there are never more copies than workers.
std::shared_ptr<const Image> StoreServer::Impl::image(std::uint32_t arrays) {
  const StoreState& state = store_->state();
  if (arrays == 1 && newest_ && newest_->version == state.applied) {
    return newest_;
  }
  const auto made = std::make_shared<Image>();
  made->version = state.applied;
  made->weights = state.weights;
  if (arrays == 3) {
    made->exp_avg = state.exp_avg;
    made->exp_avg_sq = state.exp_avg_sq;
    return made;
  }
  newest_ = made;
  return made;
}

// What time brings about.

void StoreServer::Impl::elect() {
  if (roster_.elect()) {
    say(LogLevel::kWarning, fmt::format("{} evaluates and saves from now on", roster_.workers()[*roster_.lead()].name));
  }
}

asio::awaitable<void> StoreServer::Impl::tick() {
  asio::steady_timer timer(io_);
  while (!over_) {
    timer.expires_after(kTick);
    co_await timer.async_wait(asio::use_awaitable);
    if (over_ || !store_) {
      continue;
    }
    elect();
    answer_pulls();
    for (Worker& worker : roster_.workers()) {
      if (!over_ && worker.pull && !worker.is_sending && worker.is_here()) {
        look_after(worker);
      }
    }
    roster_.look_for_slow_workers(
        [this](bool is_slow, const std::string& text) { say(is_slow ? LogLevel::kWarning : LogLevel::kInfo, text); });
    end_if_over();
  }
}

// Tells a worker that waits that it is not forgotten. One that keeps it waiting in silence is cut off; one that was
// never there ends the job.
void StoreServer::Impl::look_after(Worker& waiting) {
  const Worker* const awaited = roster_.awaited_by(waiting);
  const auto now = Clock::now();
  Waiting sign;
  if (awaited != nullptr) {
    sign = {awaited->rank, roster_.completed(*awaited)};
    const auto waited = now - waiting.pull_since;
    const bool is_late = waited >= waiting.patience && awaited->rank != waiting.rank;
    if (is_late && (!awaited->has_joined || !store_->is_started())) {
      finish(Error(ErrorCode::kTimeout,
                   fmt::format("server: {} kept the others waiting for {:.1f} s",
                               awaited->has_joined ? awaited->name + ", which has not sent the first weights,"
                                                   : fmt::format("rank {}, which has not come,", awaited->rank),
                               seconds(waited))));
      return;
    }
    if (is_late && awaited->is_here() && now - awaited->connection->last_received() >= waiting.patience) {
      say(LogLevel::kWarning,
          fmt::format("{} has said nothing for {:.1f} s, while {} waits for it; it is taken for lost", awaited->name,
                      seconds(now - awaited->connection->last_received()), waiting.name));
      awaited->connection->close();
    }
  }
  waiting.connection->send({.type = FrameType::kWaiting}, encode(sign));
}

StoreServer::End StoreServer::Impl::end_of(std::string cause) const {
  End end;
  end.orderly = cause.empty();
  end.cause = std::move(cause);
  if (store_) {
    end.updates = store_->state().applied;
    end.missing = roster_.missing_steps();
    end.staleness = store_->state().staleness;
  }
  return end;
}

void StoreServer::Impl::end_if_over() {
  if (over_ || !store_) {
    return;
  }
  switch (roster_.is_over()) {
    case StoreRoster::Over::kNo:
      return;
    case StoreRoster::Over::kOrderly:
      over_ = true;
      asio::co_spawn(io_, close_all(end_of("")), asio::detached);
      return;
    case StoreRoster::Over::kDeserted:
      finish(Error(ErrorCode::kPeerLost, "server: all workers are gone, and none has come back"));
  }
}

void StoreServer::Impl::finish(const Error& error) {
  if (over_) {
    return;
  }
  over_ = true;
  cause_ = error;
  for (const Worker& worker : roster_.workers()) {
    if (worker.connection) {
      worker.connection->send_last({.type = FrameType::kFail}, encode(error));
    }
  }
  asio::co_spawn(io_, close_all(end_of(error.what())), asio::detached);
}

// Workers end their connections when they have read the last frame.
asio::awaitable<void> StoreServer::Impl::close_all(End end) {
  const auto deadline = Clock::now() + kFarewell;
  const auto are_gone = [this] {
    return std::all_of(roster_.workers().begin(), roster_.workers().end(),
                       [](const Worker& worker) { return !worker.connection; });
  };
  asio::steady_timer pause(io_);
  while (!are_gone() && Clock::now() < deadline) {
    pause.expires_after(milliseconds(5));
    co_await pause.async_wait(asio::use_awaitable);
  }
  if (end.orderly && journal_) {
    journal_->clear();
  }
  const std::lock_guard lock(mutex_);
  end_ = std::move(end);
  ended_.notify_all();
}

StoreServer::StoreServer(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
StoreServer::~StoreServer() = default;
std::uint16_t StoreServer::port() const { return impl_->port(); }
bool StoreServer::has_begun() const { return impl_->has_begun(); }
std::optional<StoreServer::End> StoreServer::wait_for_end(milliseconds time) { return impl_->wait_for_end(time); }
void StoreServer::end(const std::string& cause) { impl_->end(cause); }

}  // namespace lockstep::server
