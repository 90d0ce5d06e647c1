#include "comm/server/store_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <future>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "base/error.h"
#include "comm/server/connection.h"
#include "comm/server/dial.h"

namespace lockstep::server {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using Clock = Connection::Clock;

constexpr milliseconds kPauseBetweenTries{100};
// How often a connection may be lost without anything done in between.
constexpr int kMostLosses = 10;
// How often a caller that waits is asked what it wishes.
constexpr milliseconds kPoll{50};
// How long a server that is lost while this worker says that it is done is looked for: it has ended, most likely.
constexpr milliseconds kLastTries{2'000};
// How long the last frames may take on their way.
constexpr milliseconds kFarewell{500};

std::uint64_t random_id() {
  std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32 | device()) | 1;
}

}  // namespace

// Runs on the client's thread but for what is marked.
class StoreClient::Impl {
 public:
  explicit Impl(Options options);  // the caller's thread
  ~Impl();                         // likewise
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // The caller's thread.
  [[nodiscard]] std::uint32_t rank() const { return rank_; }
  [[nodiscard]] std::uint32_t world() const { return world_; }
  [[nodiscard]] Mode mode() const { return options_.mode; }
  Position open(Open open);
  void start(std::uint64_t completed, const Arrays<const float>& values);
  Pulled pull(const Pull& pull, const Arrays<float>& into, const std::function<void()>& poll);
  void wish(Ending ending);
  void push(std::uint64_t step, float scale, std::span<const float> values);
  [[nodiscard]] double last_staleness() const;
  void close();
  void fail(const Error& error);

 private:
  template <typename T>
  using Awaitable = asio::awaitable<T>;

  // A server, and what it has not acknowledged yet.
  struct Link {
    std::size_t server = 0;
    ElementRange range;
    std::shared_ptr<Connection> connection;  // null while there is none
    std::optional<Opened> opened;            // over this connection
    bool was_initialized = false;
    bool is_durable = false;
    bool was_open = false;
    bool is_starting = false;
    std::optional<Gradient> push;
    bool is_pulling = false;
    server::Pulled pulled;    // of the last pull
    std::uint64_t stale = 0;  // of the last push
    bool is_closing = false;
    bool has_left = false;                   // in order
    Clock::time_point moved = Clock::now();  // when the server last did what it was asked
    int losses = 0;                          // of the connection, since then
  };

  // Runs it on the thread, and waits until `is_done`.
  void run(const std::function<void()>& begin, std::function<bool()> is_done, const std::function<void()>& poll = {});
  void settle();
  void fail_all(const Error& error);

  Awaitable<void> keep(Link& link);
  Awaitable<std::shared_ptr<Connection>> connect(Link& link);
  Awaitable<void> receive(Link& link, std::shared_ptr<Connection> connection);
  Awaitable<void> receive_values(Link& link, std::shared_ptr<Connection> connection, std::uint32_t arrays);
  Awaitable<void> watch();
  void take_opened(Link& link, const Opened& opened);
  void send_open(Link& link);
  void send_start(Link& link);
  void send_push(Link& link);
  void send_pull(Link& link);
  void send_values(Link& link, StoreArray array, std::span<const float> values);
  [[nodiscard]] bool waits(const Link& link) const {
    return (open_ && !link.opened) || link.is_starting || link.push || link.is_pulling || link.is_closing;
  }
  template <typename Condition>
  [[nodiscard]] bool all(const Condition& condition) const {
    return std::all_of(links_.begin(), links_.end(), condition);
  }

  const Options options_;
  const std::uint64_t id_ = random_id();
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> stay_ = asio::make_work_guard(io_);
  std::vector<Link> links_;
  std::optional<Open> open_;
  bool leads_ = false;
  bool has_reached_end_ = false;
  // What is under way, in the caller's memory.
  std::uint64_t started_after_ = 0;
  Arrays<const float> start_;
  std::span<const float> gradient_;
  Pull pull_;
  Arrays<float> into_;
  Ending wish_ = Ending::kNone;

  std::uint32_t rank_ = kNoRank;
  std::uint32_t world_ = 0;
  bool is_ending_ = false;
  std::function<bool()> is_done_;  // of what the caller waits for
  std::promise<void> done_;
  std::exception_ptr failure_;
  std::thread thread_;
};

StoreClient::Impl::Impl(Options options)
    : options_(std::move(options)),
      rank_(options_.rank ? static_cast<std::uint32_t>(*options_.rank) : kNoRank),
      world_(static_cast<std::uint32_t>(options_.world)) {
  links_.resize(options_.servers.size());
  for (std::size_t server = 0; server < links_.size(); ++server) {
    links_[server].server = server;
  }
  thread_ = std::thread([this] { io_.run(); });
  try {
    // The first tells the rank that the others are told.
    for (Link& link : links_) {
      run([this, &link] { asio::co_spawn(io_, keep(link), asio::detached); },
          [&link] { return link.connection != nullptr; });
    }
    asio::post(io_, [this] { asio::co_spawn(io_, watch(), asio::detached); });
  } catch (...) {
    io_.stop();
    thread_.join();
    throw;
  }
}

StoreClient::Impl::~Impl() {
  if (thread_.joinable()) {
    io_.stop();
    thread_.join();
  }
}

// Waiting.

void StoreClient::Impl::run(const std::function<void()>& begin, std::function<bool()> is_done,
                            const std::function<void()>& poll) {
  std::promise<void> done;
  std::future<void> result = done.get_future();
  asio::post(io_, [this, &begin, &done, is_done = std::move(is_done)]() mutable {
    done_ = std::move(done);
    is_done_ = std::move(is_done);
    if (!failure_) {
      begin();
    }
    settle();
  });
  while (poll && result.wait_for(kPoll) != std::future_status::ready) {
    poll();
  }
  result.get();
}

void StoreClient::Impl::settle() {
  if (!is_done_) {
    return;
  }
  if (failure_) {
    is_done_ = nullptr;
    done_.set_exception(failure_);
  } else if (is_done_()) {
    is_done_ = nullptr;
    done_.set_value();
  }
}

// Once the connections are closed, no memory of the caller is read or written any more.
void StoreClient::Impl::fail_all(const Error& error) {
  if (failure_) {
    return;
  }
  failure_ = std::make_exception_ptr(error);
  is_ending_ = true;
  for (Link& link : links_) {
    if (link.connection) {
      link.connection->close();
    }
  }
  settle();
}

// Connections.

asio::awaitable<void> StoreClient::Impl::keep(Link& link) {
  while (!is_ending_) {
    std::optional<Error> problem;
    std::shared_ptr<Connection> connection;
    try {
      connection = co_await connect(link);
      if (is_ending_) {
        connection->close();
        co_return;
      }
      link.connection = connection;
      link.opened.reset();
      if (open_) {
        send_open(link);
      }
      settle();
      co_await receive(link, connection);
    } catch (const Refusal& error) {
      problem.emplace(error.code(), error.what());
    } catch (const Error& error) {
      // Without a connection all tries are over; a lost one is made again.
      const bool is_useless =
          ++link.losses > kMostLosses && Clock::now() - link.moved >= milliseconds(options_.timeout_ms);
      if (!connection || error.code() == ErrorCode::kUsage || is_useless) {
        problem.emplace(error.code(), error.what());
      }
    }
    if (connection) {
      connection->close();
    }
    link.connection = nullptr;
    link.opened.reset();
    if (link.has_left || (problem && link.is_closing)) {
      link.is_closing = false;  // the server has ended
      settle();
      co_return;
    }
    if (problem) {
      fail_all(*problem);
    } else {
      asio::steady_timer pause(io_, kPauseBetweenTries);
      co_await pause.async_wait(asio::use_awaitable);
    }
  }
}

asio::awaitable<std::shared_ptr<Connection>> StoreClient::Impl::connect(Link& link) {
  Dial call;
  call.address = options_.servers[link.server];
  call.token = options_.token;
  call.tls = options_.tls;
  call.hello.rank = rank_;
  call.hello.world = world_;
  call.hello.part = static_cast<std::uint32_t>(link.server);
  call.hello.parts = static_cast<std::uint32_t>(links_.size());
  call.hello.timeout_ms = static_cast<std::uint32_t>(options_.timeout_ms);
  call.hello.mode = options_.mode;
  call.hello.name = options_.name;
  call.timeout = link.is_closing ? kLastTries : milliseconds(options_.timeout_ms);
  call.was_here = link.was_open;
  call.is_mortal = link.was_open && !link.is_durable;
  const Dialed dialed = co_await dial(io_, std::move(call));
  rank_ = dialed.welcome.rank;
  world_ = dialed.welcome.world;
  co_return dialed.connection;
}

// What comes back.

asio::awaitable<void> StoreClient::Impl::receive(Link& link, std::shared_ptr<Connection> connection) {
  while (true) {
    const FrameHeader header = co_await connection->read_header();
    const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
    if (header.type == FrameType::kApplied || header.type == FrameType::kPulled || header.type == FrameType::kWaiting) {
      link.moved = Clock::now();
      link.losses = 0;
    }
    if (header.type == FrameType::kOpened) {
      take_opened(link, decode_opened(payload));
    } else if (header.type == FrameType::kApplied) {
      const Applied applied = decode_applied(payload);
      if (link.push && link.push->step == applied.step) {
        link.push.reset();
        link.stale = applied.stale;
      }
    } else if (header.type == FrameType::kPulled) {
      const server::Pulled pulled = decode_pulled(payload);
      if (!link.is_pulling || (pulled.arrays != 0 && pulled.arrays != pull_.arrays)) {
        lockstep::fail(ErrorCode::kCorrupt, "server: weights that were not asked for");
      }
      co_await receive_values(link, connection, pulled.arrays);
      link.pulled = pulled;
      link.is_pulling = false;
    } else if (header.type == FrameType::kFail) {
      const Error error = decode_error(payload);
      throw Refusal(error.code(), error.what());
    } else if (header.type == FrameType::kBye) {
      link.is_closing = false;
      link.has_left = true;
    } else if (header.type != FrameType::kWaiting) {
      lockstep::fail(ErrorCode::kCorrupt, "server: a frame of type {}, which servers do not send",
                     static_cast<int>(header.type));
    }
    settle();
  }
}

asio::awaitable<void> StoreClient::Impl::receive_values(Link& link, std::shared_ptr<Connection> connection,
                                                        std::uint32_t arrays) {
  const std::array<std::span<float>, 3> into = {into_.weights, into_.exp_avg, into_.exp_avg_sq};
  for (std::uint32_t array = 0; array < arrays; ++array) {
    for (std::uint64_t at = link.range.begin; at < link.range.end;) {
      const FrameHeader header = co_await connection->read_header();
      if (header.type == FrameType::kFail) {
        const std::vector<std::byte> payload = co_await connection->read_small_payload(header);
        const Error error = decode_error(payload);
        throw Refusal(error.code(), error.what());
      }
      if (header.type != FrameType::kValues || header.call != array + 1 || header.begin != at ||
          header.end > link.range.end) {
        lockstep::fail(ErrorCode::kCorrupt,
                       "server: a frame of type {} with elements [{}, {}), expected values from {}",
                       static_cast<int>(header.type), header.begin, header.end, at);
      }
      const std::span<float> part = into[array].subspan(at, header.end - at);
      co_await connection->read_payload(header, std::as_writable_bytes(part));
      at = header.end;
    }
  }
}

void StoreClient::Impl::take_opened(Link& link, const Opened& opened) {
  if (link.was_initialized && opened.is_initialized == 0) {
    throw Refusal(
        ErrorCode::kPeerLost,
        fmt::format("the parameter server {} has lost its state; start the job again from its newest checkpoint",
                    text_of(options_.servers[link.server])));
  }
  const bool is_first = !link.opened;
  link.opened = opened;
  link.was_open = true;
  link.is_durable = opened.is_durable != 0;
  link.was_initialized = opened.is_initialized != 0;
  if (opened.lead != kNoRank && opened.lead != rank_) {
    leads_ = false;
  }
  if (opened.is_initialized != 0) {
    link.is_starting = false;
  }
  if (!is_first) {
    return;
  }
  if (link.is_starting) {
    send_start(link);
  }
  if (wish_ != Ending::kNone) {
    link.connection->send({.type = FrameType::kWish}, encode(Wish{wish_}));
  }
  if (link.push) {
    send_push(link);
  }
  if (link.is_pulling) {
    send_pull(link);
  }
  if (link.is_closing) {
    link.connection->send({.header = {.type = FrameType::kBye}});
  }
}

// A server that says nothing, though it has been asked something, is not waited for longer than timeout_ms.
asio::awaitable<void> StoreClient::Impl::watch() {
  const milliseconds limit(options_.timeout_ms);
  asio::steady_timer timer(io_);
  while (!is_ending_) {
    timer.expires_after(std::clamp(limit / 20, milliseconds(5), milliseconds(250)));
    co_await timer.async_wait(asio::use_awaitable);
    for (Link& link : links_) {
      if (link.connection && waits(link)) {
        const auto moved = std::max(link.connection->last_received(), link.connection->last_sent());
        if (Clock::now() - moved >= limit) {
          link.connection->close();
        }
      }
    }
  }
}

// What goes out.

void StoreClient::Impl::send_open(Link& link) {
  Open open = *open_;
  open.leads = leads_ ? 1 : 0;
  open.has_reached_end = has_reached_end_ ? 1 : 0;
  link.connection->send({.type = FrameType::kOpen}, encode(open));
}

void StoreClient::Impl::send_start(Link& link) {
  link.connection->send({.type = FrameType::kStart}, encode(Start{started_after_}));
  send_values(link, StoreArray::kWeights, start_.weights);
  send_values(link, StoreArray::kExpAvg, start_.exp_avg);
  send_values(link, StoreArray::kExpAvgSq, start_.exp_avg_sq);
}

void StoreClient::Impl::send_push(Link& link) {
  link.connection->send({.type = FrameType::kGradient}, encode(*link.push));
  send_values(link, StoreArray::kWeights, gradient_);
}

void StoreClient::Impl::send_pull(Link& link) { link.connection->send({.type = FrameType::kPull}, encode(pull_)); }

void StoreClient::Impl::send_values(Link& link, StoreArray array, std::span<const float> values) {
  constexpr std::uint64_t kPiece = kMaxPayloadBytes / sizeof(float);
  for (std::uint64_t begin = link.range.begin; begin < link.range.end; begin += kPiece) {
    FrameHeader header{.type = FrameType::kValues, .dtype = DType::kF32, .call = static_cast<std::uint64_t>(array)};
    header.rank = rank_;
    header.count = values.size();
    header.begin = begin;
    header.end = std::min(begin + kPiece, link.range.end);
    link.connection->send({.header = header, .payload = std::as_bytes(values.subspan(begin, header.end - begin))});
  }
}

// Calls.

StoreClient::Position StoreClient::Impl::open(Open open) {
  run(
      [&] {
        open.id = id_;
        open_ = std::move(open);
        for (Link& link : links_) {
          link.range = range_of_part(open_->elements, link.server, links_.size());
          if (link.connection) {
            send_open(link);
          }
        }
      },
      [this] { return all([](const Link& link) { return link.opened.has_value(); }); });
  Position position{.is_initialized = true, .completed = ~std::uint64_t{0}};
  run([] {},
      [&] {
        for (const Link& link : links_) {
          if (!link.opened) {
            return false;
          }
        }
        for (const Link& link : links_) {
          position.is_initialized = position.is_initialized && link.was_initialized;
          position.completed = std::min(position.completed, link.opened->completed);
        }
        return true;
      });
  return position;
}

void StoreClient::Impl::start(std::uint64_t completed, const Arrays<const float>& values) {
  run(
      [&] {
        started_after_ = completed;
        start_ = values;
        for (Link& link : links_) {
          link.is_starting = !link.was_initialized;
          if (link.is_starting && link.opened) {
            send_start(link);
          }
        }
      },
      [this] { return all([](const Link& link) { return !link.is_starting; }); });
}

void StoreClient::Impl::wish(Ending ending) {
  asio::post(io_, [this, ending] {
    wish_ = ending;
    for (const Link& link : links_) {
      if (link.opened) {
        link.connection->send({.type = FrameType::kWish}, encode(Wish{wish_}));
      }
    }
  });
}

StoreClient::Pulled StoreClient::Impl::pull(const Pull& pull, const Arrays<float>& into,
                                            const std::function<void()>& poll) {
  Pulled result;
  run(
      [&] {
        pull_ = pull;
        has_reached_end_ = pull.when == Pull::When::kEnd;
        into_ = into;
        for (Link& link : links_) {
          link.is_pulling = true;
          if (link.opened) {
            send_pull(link);
          }
        }
      },
      [this, &result] {
        if (!all([](const Link& link) { return !link.is_pulling && !link.push; })) {
          return false;
        }
        const server::Pulled& first = links_.front().pulled;
        leads_ = first.lead == rank_;
        result.leads = leads_;
        result.version = first.version;
        const auto workers = static_cast<double>(world_);
        for (const Link& link : links_) {
          const server::Pulled& pulled = link.pulled;
          result.version = std::min(result.version, pulled.version);
          result.ending = std::max(result.ending, pulled.ending);
          result.missing = std::max(result.missing, pulled.missing);
          result.stale_max = std::max(result.stale_max, static_cast<double>(pulled.stale_max) / workers);
          const double mean =
              pulled.pushes == 0 ? 0
                                 : static_cast<double>(pulled.stale_sum) / static_cast<double>(pulled.pushes) / workers;
          result.stale_mean = std::max(result.stale_mean, mean);
        }
        return true;
      },
      poll);
  return result;
}

void StoreClient::Impl::push(std::uint64_t step, float scale, std::span<const float> values) {
  asio::post(io_, [this, step, scale, values] {
    if (failure_) {
      return;  // which the next pull throws
    }
    gradient_ = values;
    for (Link& link : links_) {
      link.push = Gradient{step, link.pulled.version, scale};
      if (link.opened) {
        send_push(link);
      }
    }
  });
}

double StoreClient::Impl::last_staleness() const {
  std::uint64_t most = 0;
  for (const Link& link : links_) {
    most = std::max(most, link.stale);
  }
  return static_cast<double>(most) / static_cast<double>(world_);
}

void StoreClient::Impl::close() {
  run(
      [this] {
        for (Link& link : links_) {
          link.is_closing = true;
          if (link.opened) {
            link.connection->send({.header = {.type = FrameType::kBye}});
          }
        }
      },
      [this] { return all([](const Link& link) { return !link.is_closing; }); });
  run([this] { is_ending_ = true; }, [] { return true; });
}

void StoreClient::Impl::fail(const Error& error) {
  const auto say = [](Impl* self, Error why) -> Awaitable<void> {
    for (const Link& link : self->links_) {
      if (link.connection) {
        const std::shared_ptr<Connection> connection = link.connection;
        connection->send_last({.type = FrameType::kFail}, encode(why));
        co_await connection->flush(kFarewell);
      }
    }
  };
  std::promise<void> said;
  asio::co_spawn(io_, say(this, error), [&said](const std::exception_ptr&) { said.set_value(); });
  said.get_future().wait();
}

StoreClient::StoreClient(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
StoreClient::~StoreClient() = default;
int StoreClient::rank() const { return static_cast<int>(impl_->rank()); }
int StoreClient::world() const { return static_cast<int>(impl_->world()); }
Mode StoreClient::mode() const { return impl_->mode(); }
StoreClient::Position StoreClient::open(Open open) { return impl_->open(std::move(open)); }
void StoreClient::start(std::uint64_t completed, const Arrays<const float>& values) { impl_->start(completed, values); }
StoreClient::Pulled StoreClient::pull(const Pull& pull, const Arrays<float>& into, const std::function<void()>& poll) {
  return impl_->pull(pull, into, poll);
}
void StoreClient::wish(Ending ending) { impl_->wish(ending); }
void StoreClient::push(std::uint64_t step, float scale, std::span<const float> values) {
  impl_->push(step, scale, values);
}
double StoreClient::last_staleness() const { return impl_->last_staleness(); }
void StoreClient::close() { impl_->close(); }
void StoreClient::fail(const Error& error) { impl_->fail(error); }

}  // namespace lockstep::server
