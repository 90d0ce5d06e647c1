#include "comm/mpi/watch.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/error.h"
#include "comm/mpi/check.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace lockstep::mpi {
namespace {

using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kNoticeTag = 1;
constexpr auto kProcessCheckEvery = milliseconds(200);
// A notice that was sent has arrived after this time.
constexpr auto kNoticeDelay = milliseconds(50);
// What the last messages are given.
constexpr auto kFarewell = milliseconds(300);
// A rank that hears of another's wait says that it waits too, unless its own wait has only just begun.
constexpr auto kAnnounceAtOnceAfter = milliseconds(20);

// A wait is short when the other ranks are as fast as this one, and long when they compute. Spinning is for the first
// kind; in the second the core belongs to whoever computes.
constexpr int kSpins = 200;
constexpr auto kYieldFor = milliseconds(1);
constexpr auto kLookEvery = milliseconds(1);
constexpr auto kShortestSleep = microseconds(50);
constexpr auto kLongestSleep = microseconds(10'000);

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

}  // namespace

Watch::Watch(MPI_Comm world, const Peers& peers, Settings settings)
    : peers_(peers), settings_(std::move(settings)), waiting_call_(static_cast<std::size_t>(peers.world_size())) {
  check(MPI_Comm_dup(world, &notices_), "MPI_Comm_dup");
}

void Watch::begin_call(std::string_view name, std::size_t amount, std::string_view unit) {
  name_ = name;
  amount_ = amount;
  unit_ = unit;
  ++call_;
  if (left_ && left_->first.call < call_) {
    fail_with_notice(left_->first, left_->second);
  }
}

std::string Watch::call_name() const {
  return unit_.empty() ? std::string(name_) : fmt::format("{} of {} {}", name_, amount_, unit_);
}

void Watch::check_peers() {
  name_ = "checking the other ranks";
  unit_ = {};
  receive_notices();
  check_processes(Clock::now());
  if (left_) {
    fail_with_notice(left_->first, left_->second);
  }
}

void Watch::look(Clock::time_point since, int awaited) {
  const auto now = Clock::now();
  if (settings_.is_abandoned()) {
    send_to_all({NoticeKind::kLeft, peers_.rank(), call_ - 1});
    fail(ErrorCode::kPeerLost, "{}: the communicator was destroyed meanwhile", call_name());
  }
  receive_notices();
  check_processes(now);
  const auto timeout = milliseconds(settings_.timeout_ms);
  const bool others_wait = *std::max_element(waiting_call_.begin(), waiting_call_.end()) >= call_;
  if (now - since > timeout / 2 || (others_wait && now - since > kAnnounceAtOnceAfter)) {
    announce_waiting();
  }
  if (now - since > timeout) {
    fail_timeout(now - since, awaited);
  }
}

void Watch::receive_notices() {
  for (;;) {
    int there = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, kNoticeTag, notices_, &there, &status), "MPI_Iprobe");
    if (there == 0) {
      return;
    }
    Notice notice;
    check(MPI_Recv(&notice, sizeof(notice), MPI_BYTE, status.MPI_SOURCE, kNoticeTag, notices_, MPI_STATUS_IGNORE),
          "MPI_Recv");
    if (notice.kind == NoticeKind::kLeft && notice.call >= call_) {
      left_ = {notice, status.MPI_SOURCE};
      continue;
    }
    if (notice.kind != NoticeKind::kWaiting) {
      fail_with_notice(notice, status.MPI_SOURCE);
    }
    auto& call = waiting_call_[static_cast<std::size_t>(status.MPI_SOURCE)];
    call = std::max(call, notice.call);
  }
}

void Watch::check_processes(Clock::time_point now) {
  if (now - last_process_check_ < kProcessCheckEvery) {
    return;
  }
  last_process_check_ = now;
  for (int rank = 0; rank < peers_.world_size(); ++rank) {
    if (rank != peers_.rank() && peers_.state_of(rank) == ProcessState::kGone) {
      // It may have gone because of another rank, of which it then told before.
      for (const auto until = now + kNoticeDelay; Clock::now() < until;) {
        receive_notices();
        std::this_thread::sleep_for(kShortestSleep);
      }
      if (left_) {
        fail_with_notice(left_->first, left_->second);
      }
      send_to_all({NoticeKind::kLost, rank, call_});
      fail(ErrorCode::kPeerLost, "{}: {} is gone: its process ended", call_name(), peers_.name_of(rank));
    }
  }
}

void Watch::announce_waiting() {
  if (last_announced_call_ != call_) {
    last_announced_call_ = call_;
    send_to_all({NoticeKind::kWaiting, kNobody, call_});
  }
}

// Results are ignored: a rank that cannot be reached must not hide why the others are being told.
void Watch::send_to_all(Notice notice) {
  while (!sent_.empty()) {
    int done = 0;
    auto& requests = sent_.front().requests;
    MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
    if (done == 0) {
      break;
    }
    sent_.pop_front();
  }
  Sent& sent = sent_.emplace_back(Sent{notice, {}});
  for (int rank = 0; rank < peers_.world_size(); ++rank) {
    if (rank != peers_.rank()) {
      MPI_Request& request = sent.requests.emplace_back(MPI_REQUEST_NULL);
      MPI_Isend(&sent.notice, sizeof(sent.notice), MPI_BYTE, rank, kNoticeTag, notices_, &request);
    }
  }
}

void Watch::fail_timeout(Clock::duration waited, int awaited) {
  std::vector<int> silent;
  for (int rank = 0; rank < peers_.world_size(); ++rank) {
    if (rank != peers_.rank() && waiting_call_[static_cast<std::size_t>(rank)] < call_) {
      silent.push_back(rank);
    }
  }
  const bool awaited_is_silent = std::find(silent.begin(), silent.end(), awaited) != silent.end();
  if (awaited_is_silent) {
    silent = {awaited};
  }
  const double seconds = std::chrono::duration<double>(waited).count();
  if (silent.empty()) {
    const std::string who = awaited == kNobody ? "another rank" : peers_.name_of(awaited);
    send_to_all({NoticeKind::kTimedOut, awaited, call_});
    fail(ErrorCode::kTimeout,
         "{}: nothing came from {} for {:.1f} s, though every rank is waiting: is the network between them open?",
         call_name(), who, seconds);
  }
  std::string names;
  for (const int rank : silent) {
    const bool stopped = peers_.state_of(rank) == ProcessState::kStopped;
    names += (names.empty() ? "" : ", ") + peers_.name_of(rank) + (stopped ? ", which a signal stopped," : "");
  }
  send_to_all({NoticeKind::kTimedOut, silent.front(), call_});
  fail(ErrorCode::kTimeout, "{}: {} kept the others waiting for {:.1f} s", call_name(), names, seconds);
}

void Watch::fail_with_notice(const Notice& notice, int sender) {
  const bool is_me = notice.culprit == peers_.rank();
  const std::string culprit = notice.culprit == kNobody ? "another rank" : peers_.name_of(notice.culprit);
  switch (notice.kind) {
    case NoticeKind::kTimedOut:
      if (is_me) {
        fail(ErrorCode::kTimeout, "{}: this is {}, which kept the others waiting until {} gave up after {:.1f} s",
             call_name(), culprit, peers_.name_of(sender), settings_.timeout_ms / 1e3);
      }
      fail(ErrorCode::kTimeout, "{}: {} kept the others waiting until {} gave up after {:.1f} s", call_name(), culprit,
           peers_.name_of(sender), settings_.timeout_ms / 1e3);
    case NoticeKind::kLost:
      fail(ErrorCode::kPeerLost, "{}: {} is gone: its process ended, as {} saw", call_name(), culprit,
           peers_.name_of(sender));
    default:
      // This rank's process may be found gone by others before they hear why.
      send_to_all(notice);
      fail(ErrorCode::kPeerLost, "{}: {} left the job before its end", call_name(), culprit);
  }
}

void Watch::leave() {
  send_to_all({NoticeKind::kLeft, peers_.rank(), call_});
  flush();
}

void Watch::flush() {
  const auto deadline = Clock::now() + kFarewell;
  for (Sent& sent : sent_) {
    int done = 0;
    while (done == 0 && Clock::now() < deadline) {
      MPI_Testall(static_cast<int>(sent.requests.size()), sent.requests.data(), &done, MPI_STATUSES_IGNORE);
      if (done == 0) {
        std::this_thread::sleep_for(kShortestSleep);
      }
    }
  }
}

void Watch::close() {
  for (Sent& sent : sent_) {
    check(MPI_Waitall(static_cast<int>(sent.requests.size()), sent.requests.data(), MPI_STATUSES_IGNORE),
          "MPI_Waitall");
  }
  check(MPI_Comm_free(&notices_), "MPI_Comm_free");
}

Wait::Wait(Watch& watch, int awaited) : watch_(watch), awaited_(awaited) {}

microseconds Wait::next_sleep() {
  if (++looks_ < kSpins) {
    relax();
    return microseconds(0);
  }
  const auto now = Watch::Clock::now();
  if (looks_ == kSpins) {
    since_ = now;
    last_look_ = now;
    watch_.settings_.sign_of_life();
  }
  if (now - last_look_ > kLookEvery) {
    last_look_ = now;
    watch_.look(since_, awaited_);
  }
  if (now - since_ < kYieldFor) {
    ::sched_yield();
    return microseconds(0);
  }
  // Longer the longer it took already: a wait of a second does not need to end to the microsecond.
  return std::clamp(duration_cast<microseconds>(now - since_) / 100, kShortestSleep, kLongestSleep);
}

void wait_for(MPI_Request& request, Watch& watch, int awaited, MPI_Status* status) {
  int done = 0;
  check(MPI_Test(&request, &done, status), "MPI_Test");
  if (done != 0) {
    return;
  }
  Wait wait(watch, awaited);
  while (done == 0) {
    const microseconds sleep = wait.next_sleep();
    if (sleep.count() > 0) {
      std::this_thread::sleep_for(sleep);
    }
    check(MPI_Test(&request, &done, status), "MPI_Test");
  }
}

}  // namespace lockstep::mpi
