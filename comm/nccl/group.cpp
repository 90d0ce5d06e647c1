#include "comm/nccl/group.h"

#include <fmt/format.h>

#include <chrono>
#include <span>
#include <string>
#include <thread>

#include "comm/nccl/error.h"

namespace lockstep::nccl {

using Clock = std::chrono::steady_clock;

// One wait: for (Patience patience(group);;) { if (arrived()) break; patience.next(); }
class Group::Patience {
 public:
  explicit Patience(const Group& group) : group_(group), since_(Clock::now()) {}

  // Gives the core away for a moment, later sleeps. Throws what NCCL reports, and Error(kTimeout).
  void next() {
    const auto waited = Clock::now() - since_;
    group_.check_for_errors();
    if (waited >= next_peer_check_) {
      next_peer_check_ = waited + kPeerCheckEvery;
      group_.check_peers();
    }
    if (waited > std::chrono::milliseconds(group_.timeout_ms_)) {
      fail(
          ErrorCode::kTimeout,
          "{} waited for {:.1f} s and NCCL reports no error: another rank did not come to this call, or a GPU is stuck",
          group_.where(), std::chrono::duration<double>(waited).count());
    }
    if (waited < kSpinFor) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kSleep);
    }
  }

 private:
  static constexpr auto kSpinFor = std::chrono::microseconds(100);
  static constexpr auto kSleep = std::chrono::microseconds(50);
  static constexpr auto kPeerCheckEvery = std::chrono::milliseconds(200);

  const Group& group_;
  const Clock::time_point since_;
  Clock::duration next_peer_check_ = kPeerCheckEvery;
};

// A call that is in the stream.
class Group::Started final : public Work::State {
 public:
  Started(std::shared_ptr<Group> group, cuda::Event done, const Call& call)
      : group_(std::move(group)), done_(std::move(done)), call_(call) {}
  ~Started() override { group_->give_back(std::move(done_)); }
  Started(const Started&) = delete;
  Started& operator=(const Started&) = delete;

  void wait() override { group_->wait_for(done_, call_); }
  [[nodiscard]] bool is_done() const override { return group_->failure_ || done_.is_done(); }

 private:
  std::shared_ptr<Group> group_;
  cuda::Event done_;
  Call call_;
};

Group::Group(const CommOptions& options, Communicator& host)
    : rank_(static_cast<std::size_t>(host.rank())),
      world_size_(static_cast<std::size_t>(host.world_size())),
      timeout_ms_(options.timeout_ms),
      host_(&host),
      call_{"connecting the GPUs"},
      handle_(library_) {
  int index = 0;
  cuda::check(cudaGetDevice(&index), "comm: asking for the GPU in use");
  device_ = {DeviceKind::kCuda, static_cast<std::uint8_t>(index)};

  ncclUniqueId id{};
  if (rank_ == 0) {
    check(library_.get_unique_id(&id));
  }
  host.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0);

  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  settle(library_.comm_init_rank_config(handle_.out(), host.world_size(), id, host.rank(), &config));
}

void Group::check(ncclResult_t result) const {
  if (is_good(result)) {
    return;
  }
  const std::string last = library_.get_last_error(handle_.get());
  fail(error_code_of(result), "{}: NCCL: {} ({}){}{}", where(), library_.get_error_string(result), name_of(result),
       last.empty() ? "" : ": ", last);
}

void Group::check_for_errors() const {
  if (handle_.get() == nullptr) {
    return;
  }
  ncclResult_t state = ncclSuccess;
  check(library_.comm_get_async_error(handle_.get(), &state));
  check(state);
}

void Group::settle(ncclResult_t result) const {
  check(result);
  for (Patience patience(*this); result == ncclInProgress;) {
    patience.next();
    check(library_.comm_get_async_error(handle_.get(), &result));
    check(result);
  }
}

void Group::check_peers() const {
  if (host_ == nullptr) {
    return;
  }
  try {
    host_->check_peers();
  } catch (const Error& error) {
    fail(error.code(), "{}: {}", where(), error.what());
  }
}

bool Group::has_passed(const cuda::Event& event) const {
  try {
    return event.is_done();
  } catch (const Error& error) {
    fail(error.code(), "{}: {}", where(), error.what());
  }
}

std::string Group::where() const {
  const std::string amount =
      call_.count == 0 ? "" : fmt::format(" of {} {}", call_.count, lockstep::name_of(call_.dtype));
  return fmt::format("{}{}: rank {} of {}", call_.name, amount, rank_, world_size_);
}

void Group::begin(const Call& call) {
  require(!is_closed_, "comm: a call after close()");
  require_no_failure();
  call_ = call;
}

void Group::follow_compute_stream() {
  computed_.record(cuda::compute_stream().get());
  computed_.make_wait(stream_.get());
}

Work Group::finish() {
  std::shared_ptr<Started> started;
  guard([&] {
    cuda::Event done = take_event();
    done.record(stream_.get());
    started = std::make_shared<Started>(shared_from_this(), std::move(done), call_);
  });
  return Work(std::move(started));
}

void Group::wait_for(const cuda::Event& done, const Call& call) {
  require_no_failure();
  call_ = call;
  guard([&] {
    for (Patience patience(*this); !has_passed(done);) {
      patience.next();
    }
    done.make_wait(cuda::compute_stream().get());
  });
}

void Group::close() {
  begin({"close"});
  is_closed_ = true;
  guard([&] {
    settle(library_.comm_finalize(handle_.get()));
    check(handle_.destroy());
  });
  host_ = nullptr;
}

void Group::abandon() noexcept {
  host_ = nullptr;
  if (!is_closed_ && !failure_) {
    fail_with(Error(ErrorCode::kPeerLost, "comm: the communicator was destroyed meanwhile"));
  }
}

void Group::fail_with(const Error& error) noexcept {
  failure_ = error;
  handle_.abort();
}

void Group::require_no_failure() const {
  if (failure_) {
    throw Error(*failure_);
  }
}

cuda::Event Group::take_event() {
  if (events_.empty()) {
    events_.reserve(++events_made_);  // so that give_back() needs no memory
    return {};
  }
  cuda::Event event = std::move(events_.back());
  events_.pop_back();
  return event;
}

void Group::give_back(cuda::Event event) noexcept { events_.push_back(std::move(event)); }

CallGroup::CallGroup(const Group& group) : group_(group) {
  group_.check(group_.library().group_start());
  is_open_ = true;
}

CallGroup::~CallGroup() {
  if (is_open_) {
    static_cast<void>(group_.library().group_end());
  }
}

void CallGroup::end() {
  is_open_ = false;
  group_.settle(group_.library().group_end());
}

}  // namespace lockstep::nccl
