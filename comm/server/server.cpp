#include "comm/server/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <list>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/control/handshake.h"
#include "comm/server/block.h"
#include "comm/server/connection.h"
#include "comm/server/group.h"
#include "comm/server/seating.h"

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
constexpr milliseconds kWatchPeriod{25};
// How often one side lets the other hear from it in the time in which silence means that it is lost.
constexpr int kSignsInSilence = 5;
// Refused connections that are told of; a flood of them is not.
constexpr int kMostRefusalsSaid = 10;

std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
  return text;
}

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
  using Clock = Connection::Clock;
  template <typename T>
  using Awaitable = asio::awaitable<T>;
  using Pending = std::list<tcp::socket>;

  // A worker with a connection. It waits for a group, is in one, or has been told that its group is over.
  struct Worker {
    Hello hello;
    std::string name;  // "rank 1 (host node07, process 4711)", without the rank while it has none
    std::shared_ptr<Connection> connection;
    std::shared_ptr<Account> account;
    milliseconds patience{0};
    Clock::time_point came;
    Clock::time_point reads_since;  // the connection is being read
    bool is_read = false;
    bool greets = false;                         // a sign of life is on its way to it
    bool is_dismissed = false;                   // its group or its job is over, or it is refused
    std::shared_ptr<Group::Member> member = {};  // of group_
  };

  Awaitable<void> accept_all();
  Awaitable<void> serve(Pending::iterator place);
  Awaitable<void> receive_hello(std::shared_ptr<Connection> connection, std::shared_ptr<Worker>& worker);
  Awaitable<void> serve_worker(std::shared_ptr<Worker> worker);
  Awaitable<void> receive(std::shared_ptr<Worker> worker);
  Awaitable<void> receive_data(std::shared_ptr<Worker> worker, FrameHeader header);
  Awaitable<void> watch();
  std::shared_ptr<Worker> admit(const std::shared_ptr<Connection>& connection, const Hello& hello);
  void handle(Worker& worker, const FrameHeader& header, std::span<const std::byte> payload);
  void blame(Worker& worker, const FrameHeader& header, const Who& who);

  [[nodiscard]] bool leads() const { return options_.part == 0; }
  [[nodiscard]] std::size_t wanted() const { return static_cast<std::size_t>(options_.workers); }
  [[nodiscard]] std::size_t fewest() const {
    return options_.min_workers > 0 ? static_cast<std::size_t>(options_.min_workers) : wanted();
  }
  [[nodiscard]] std::vector<std::shared_ptr<Worker>> guests() const;  // who wait, in the order in which they came
  void seat_guests();
  void seat_as_led();
  void see_to_guests();
  void see_to_latecomers();
  void form(const std::vector<std::shared_ptr<Worker>>& workers, std::uint64_t id);
  [[nodiscard]] std::string missing_worker() const;
  void lose(const Worker& worker, const std::string& why);
  void end_group(const Error& error);
  void refuse(Worker& worker, const std::string& why);
  void say_refused(const std::string& whom, const std::string& why);
  void dismiss(Worker& worker, FrameType type, const Error& error);
  void look_after_workers(Clock::time_point now);
  void tell_late(Clock::time_point now);
  void finish(const Error& error);
  Awaitable<void> cut_off(std::shared_ptr<Connection> connection);
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
  std::list<std::shared_ptr<Worker>> workers_;  // with a connection, in the order in which they came
  std::shared_ptr<Group> group_;
  std::uint64_t last_group_ = 0;
  std::size_t last_world_ = 0;
  std::size_t left_ = 0;                          // workers of that group that left on purpose
  std::optional<Clock::time_point> waits_since_;  // for a group
  std::optional<Error> loss_;                     // what ended the last group, until there is another
  bool over_ = false;
  std::optional<Error> cause_;  // unless it ended in order
  Clock::time_point late_told_ = Clock::now();

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
  require(options_.min_workers >= 0 && options_.min_workers <= options_.workers,
          "server: at least {} workers, expected at most the job's {}", options_.min_workers, options_.workers);
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
  asio::co_spawn(io_, watch(), asio::detached);
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
    connection = co_await Connection::accept(*place, options_.token, options_.tls);
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
  } else {
    say_refused("a connection from " + from.address().to_string(), problem);
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
  if (cause_) {
    throw Error(*cause_);
  }
  require(!over_, "server: this server's job is over");
  require(hello.part == static_cast<std::uint32_t>(options_.part) &&
              hello.parts == static_cast<std::uint32_t>(options_.parts),
          "server: the worker takes this server for part {}/{}, but it was started with --part {}/{}; comm.servers "
          "lists all servers in the order of their parts",
          hello.part + std::uint64_t{1}, hello.parts, options_.part + 1, options_.parts);
  require(leads() ? hello.group == 0 : hello.group != 0 && hello.rank < hello.world,
          "server: a hello for group {} as rank {} of {} to part {}", hello.group, hello.rank, hello.world,
          options_.part + 1);
  const bool fits = hello.world == 0 || hello.world == wanted() || (!leads() && hello.world < wanted());
  require(fits, "server: the worker is one of {}, but the server waits for {}", hello.world, wanted());
  require(!hello.insists || hello.rank < wanted(), "server: the worker has rank {}, expected one below {}", hello.rank,
          wanted());

  auto worker = std::make_shared<Worker>();
  worker->hello = hello;
  const std::string name = printable(hello.name);
  worker->name = hello.rank == kNoRank ? name : fmt::format("rank {} ({})", hello.rank, name);
  worker->connection = connection;
  worker->account = std::make_shared<Account>(io_);
  worker->patience = std::max(milliseconds(hello.timeout_ms), kLeastPatience);
  worker->came = Clock::now();
  workers_.push_back(worker);
  {
    const std::lock_guard lock(mutex_);
    has_begun_ = true;
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
  const auto block = std::make_shared<Block>(header.payload_bytes, worker->account);
  co_await worker->connection->read_payload(header, block->bytes());
  if (worker->is_dismissed) {
    co_return;
  }
  if (!worker->member) {
    fail(ErrorCode::kCorrupt, "server: data before a welcome");
  }
  const std::shared_ptr<Group::Member> member = worker->member;
  group_->enter(*member, header.call);
  if (header.type == FrameType::kPush) {
    group_->push(*member, header, block);
  } else {
    group_->give(*member, header, block);
  }
}

void Server::Impl::handle(Worker& worker, const FrameHeader& header, std::span<const std::byte> payload) {
  if (header.type == FrameType::kAlive) {
    return;
  }
  if (header.type == FrameType::kFail) {
    const Error error = decode_error(payload);
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

// Groups.

std::vector<std::shared_ptr<Server::Impl::Worker>> Server::Impl::guests() const {
  std::vector<std::shared_ptr<Worker>> waiting;
  std::copy_if(workers_.begin(), workers_.end(), std::back_inserter(waiting),
               [](const auto& worker) { return !worker->member && !worker->is_dismissed; });
  return waiting;
}

// After every arrival, and again while time passes.
void Server::Impl::see_to_guests() {
  if (!over_ && group_) {
    see_to_latecomers();
  }
  if (!over_ && !group_) {
    leads() ? seat_guests() : seat_as_led();
  }
}

// Workers that come while a group trains.
void Server::Impl::see_to_latecomers() {
  const auto now = Clock::now();
  const std::vector<std::shared_ptr<Worker>> waiting = guests();
  const std::size_t world = group_->members().size();
  for (const std::shared_ptr<Worker>& guest : waiting) {
    const bool came_again = std::any_of(workers_.begin(), workers_.end(), [&](const auto& other) {
      return other->member && other->hello.process == guest->hello.process;
    });
    if (came_again || (!leads() && guest->hello.group > group_->id())) {
      end_group(Error(ErrorCode::kPeerLost, fmt::format("{} has come again", guest->name)));
      return;
    }
    // The one whose place it wants may be lost, and nobody has noticed yet.
    const auto grace = 2 * milliseconds(guest->hello.silence_ms);
    const bool is_taken = guest->hello.insists && guest->hello.rank < world;
    if (now - guest->came < grace) {
      continue;
    }
    if (is_taken) {
      refuse(*guest, fmt::format("server: {} is here already, and {} has the same rank",
                                 group_->members()[guest->hello.rank]->name, guest->hello.name));
    } else if (world == wanted()) {
      refuse(*guest, fmt::format("server: all {} workers are here already", wanted()));
    }
  }
  const std::size_t possible = world_of(world + waiting.size(), wanted(), fewest());
  if (leads() && possible > world) {
    end_group(Error(ErrorCode::kPeerLost, fmt::format("the job grows from {} to {} workers", world, possible)));
  }
}

// Part 0 decides who trains.
void Server::Impl::seat_guests() {
  const std::vector<std::shared_ptr<Worker>> waiting = guests();
  const auto now = Clock::now();
  if (!waits_since_) {
    if (waiting.empty()) {
      return;
    }
    waits_since_ = now;
  }
  for (auto a = waiting.begin(); a != waiting.end(); ++a) {
    const Hello& hello = (*a)->hello;
    const auto same = std::find_if(waiting.begin(), a, [&](const auto& other) {
      return hello.insists && other->hello.insists && other->hello.rank == hello.rank;
    });
    if (same != a) {
      refuse(**a, fmt::format("server: {} is here already, and {} has the same rank", (*same)->name, hello.name));
      return;
    }
  }
  const bool waited_out = now - *waits_since_ >= options_.wait;
  const bool takes_fewer = options_.min_workers > 0 && waited_out;
  const std::size_t world = world_of(waiting.size(), wanted(), takes_fewer ? fewest() : wanted());
  if (world > 0) {
    std::vector<Hello> hellos;
    for (const std::shared_ptr<Worker>& guest : waiting) {
      hellos.push_back(guest->hello);
    }
    std::vector<std::shared_ptr<Worker>> seated;
    for (const std::size_t guest : seats(hellos, world)) {
      seated.push_back(waiting[guest]);
    }
    const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
    const auto clock =
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(since_1970).count());
    form(seated, std::max(last_group_ + 1, clock));
  } else if (loss_ && waited_out) {
    finish(Error(loss_->code(), fmt::format("{}; {} of {} workers came within {:.0f} s", loss_->what(), waiting.size(),
                                            wanted(), std::chrono::duration<double>(options_.wait).count())));
  } else if (!loss_) {
    for (const std::shared_ptr<Worker>& guest : waiting) {
      if (now - guest->came >= guest->patience) {
        finish(
            Error(ErrorCode::kTimeout, fmt::format("start: {} kept the others waiting for {:.1f} s", missing_worker(),
                                                   std::chrono::duration<double>(now - guest->came).count())));
        return;
      }
    }
  }
}

// Other parts take the groups that part 0 made up, once they are complete.
void Server::Impl::seat_as_led() {
  const std::vector<std::shared_ptr<Worker>> waiting = guests();
  std::uint64_t newest = 0;
  for (const std::shared_ptr<Worker>& guest : waiting) {
    newest = std::max(newest, guest->hello.group);
  }
  std::vector<std::shared_ptr<Worker>> seated;
  for (const std::shared_ptr<Worker>& guest : waiting) {
    const bool is_new = guest->hello.group == newest && guest->hello.group > last_group_;
    if (!is_new || Clock::now() - guest->came >= guest->patience) {
      dismiss(*guest, FrameType::kRegroup,
              Error(ErrorCode::kTimeout, "the other workers have not come to this server"));
      continue;
    }
    seated.resize(guest->hello.world);
    seated[guest->hello.rank] = guest;
  }
  if (!seated.empty() && std::find(seated.begin(), seated.end(), nullptr) == seated.end()) {
    form(seated, newest);
  }
}

void Server::Impl::form(const std::vector<std::shared_ptr<Worker>>& workers, std::uint64_t id) {
  const auto world = static_cast<std::uint32_t>(workers.size());
  std::vector<std::shared_ptr<Group::Member>> members;
  for (std::uint32_t rank = 0; rank < world; ++rank) {
    Worker& worker = *workers[rank];
    worker.name = fmt::format("rank {} ({})", rank, printable(worker.hello.name));
    worker.member = std::make_shared<Group::Member>(
        Group::Member{.name = worker.name, .connection = worker.connection, .rank = rank});
    members.push_back(worker.member);
    worker.connection->send({.type = FrameType::kWelcome}, encode(Welcome{rank, world, id}));
  }
  group_ = std::make_shared<Group>(id, std::move(members), Clock::now());
  last_group_ = id;
  last_world_ = world;
  left_ = 0;
  waits_since_.reset();
  loss_.reset();
  say(LogLevel::kInfo, world == wanted() ? fmt::format("all {} workers are here", world)
                                         : fmt::format("going on with {} of {} workers", world, wanted()));
}

std::string Server::Impl::missing_worker() const {
  std::vector<bool> has_come(wanted());
  std::size_t without_rank = 0;
  for (const std::shared_ptr<Worker>& guest : guests()) {
    if (guest->hello.rank < wanted()) {
      has_come[guest->hello.rank] = true;
    } else {
      ++without_rank;
    }
  }
  std::size_t rank = 0;
  for (; rank < wanted() && (has_come[rank] || without_rank > 0); ++rank) {
    without_rank -= has_come[rank] ? 0 : 1;
  }
  return fmt::format("rank {}, which has not come,", rank);
}

// Losses and ends.

// Its connection has ended.
void Server::Impl::lose(const Worker& worker, const std::string& why) {
  if (over_ || worker.is_dismissed || (worker.member && worker.member->has_said_bye)) {
    return;
  }
  const std::string text = fmt::format("{} is gone: {}", worker.name, why);
  if (worker.member) {
    end_group(Error(ErrorCode::kPeerLost, text));
  } else {
    say(LogLevel::kInfo, text);
  }
}

void Server::Impl::end_group(const Error& error) {
  if (over_ || !group_) {
    return;
  }
  if (options_.wait == milliseconds(0) || group_->has_anyone_said_bye()) {
    finish(error);
    return;
  }
  group_.reset();
  loss_ = error;
  waits_since_ = Clock::now();
  for (const std::shared_ptr<Worker>& worker : workers_) {
    if (worker->member) {
      dismiss(*worker, FrameType::kRegroup, error);
    }
  }
  say(LogLevel::kWarning, fmt::format("{}; the workers regroup", error.what()));
}

void Server::Impl::refuse(Worker& worker, const std::string& why) {
  dismiss(worker, FrameType::kFail, Error(ErrorCode::kUsage, why));
  say_refused(worker.name, why);
}

void Server::Impl::say_refused(const std::string& whom, const std::string& why) {
  if (++refusals_ <= kMostRefusalsSaid) {
    say(LogLevel::kWarning, fmt::format("refused {}: {}{}", whom, why,
                                        refusals_ == kMostRefusalsSaid ? "; further ones are not mentioned" : ""));
  }
}

// Workers end their connections when they have read the last frame.
void Server::Impl::dismiss(Worker& worker, FrameType type, const Error& error) {
  if (!worker.is_dismissed) {
    worker.is_dismissed = true;
    worker.member.reset();
    worker.connection->send_last({.type = type}, encode(error));
    asio::co_spawn(io_, cut_off(worker.connection), asio::detached);
  }
}

asio::awaitable<void> Server::Impl::cut_off(std::shared_ptr<Connection> connection) {
  asio::steady_timer deadline(io_, kFarewell);
  co_await deadline.async_wait(asio::use_awaitable);
  connection->close();
}

void Server::Impl::finish(const Error& error) {
  if (over_) {
    return;
  }
  over_ = true;
  cause_ = error;
  group_.reset();
  for (const std::shared_ptr<Worker>& worker : workers_) {
    dismiss(*worker, FrameType::kFail, error);
  }
  asio::co_spawn(io_, close_all({.orderly = false, .cause = error.what()}), asio::detached);
}

asio::awaitable<void> Server::Impl::close_all(End end) {
  const auto deadline = Clock::now() + kFarewell;
  asio::steady_timer pause(io_);
  while (!workers_.empty() && Clock::now() < deadline) {
    pause.expires_after(milliseconds(5));
    co_await pause.async_wait(asio::use_awaitable);
  }
  const std::lock_guard lock(mutex_);
  end_ = std::move(end);
  ended_.notify_all();
}

// What time brings.

asio::awaitable<void> Server::Impl::watch() {
  asio::steady_timer timer(io_);
  auto watched = Clock::now();
  while (true) {
    timer.expires_after(kWatchPeriod);
    co_await timer.async_wait(asio::use_awaitable);
    const auto now = Clock::now();
    if (now - watched > 10 * kWatchPeriod) {
      // This thread stood still itself, and cannot tell who else did.
      for (const std::shared_ptr<Worker>& worker : workers_) {
        worker->reads_since = now;
      }
    }
    watched = now;
    look_after_workers(now);
    see_to_guests();
    tell_late(now);
  }
}

void Server::Impl::look_after_workers(Clock::time_point now) {
  const std::vector<std::shared_ptr<Worker>> all(workers_.begin(), workers_.end());
  for (const std::shared_ptr<Worker>& worker : all) {
    const milliseconds silence(worker->hello.silence_ms);
    if (worker->is_dismissed || silence == milliseconds(0)) {
      continue;
    }
    const auto quiet = now - std::max(worker->connection->last_received(), worker->reads_since);
    if (worker->is_read && quiet >= silence) {
      const Error error(ErrorCode::kTimeout, fmt::format("{} has not answered for {:.1f} s", worker->name,
                                                         std::chrono::duration<double>(quiet).count()));
      worker->member ? end_group(error) : dismiss(*worker, FrameType::kRegroup, error);
      continue;
    }
    if (now - worker->connection->last_sent() >= silence / kSignsInSilence && !worker->greets) {
      worker->greets = true;
      worker->connection->send({.header = {.type = FrameType::kAlive}, .sent = [worker] { worker->greets = false; }});
    }
  }
}

void Server::Impl::tell_late(Clock::time_point now) {
  if (now - late_told_ < options_.slow_period) {
    return;
  }
  late_told_ = now;
  if (!group_) {
    return;
  }
  for (const Lateness::Late& late : group_->take_late(now)) {
    say(LogLevel::kWarning, fmt::format("{} is slow: the others waited for it alone for {:.1f} of the last {:.1f} s",
                                        group_->members()[late.rank]->name, late.waited_s, late.of_s));
  }
}

Server::Server(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
Server::~Server() = default;
std::uint16_t Server::port() const { return impl_->port(); }
bool Server::has_begun() const { return impl_->has_begun(); }
std::optional<Server::End> Server::wait_for_end(std::chrono::milliseconds time) { return impl_->wait_for_end(time); }
void Server::end(const std::string& cause) { impl_->end(cause); }

}  // namespace lockstep::server
