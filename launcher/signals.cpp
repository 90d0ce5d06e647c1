#include "launcher/signals.h"

#include <array>
#include <atomic>
#include <cassert>
#include <csignal>
#include <cstdint>
#include <ctime>

namespace lockstep {
namespace {

constexpr std::array<int, 3> kSignals = {SIGINT, SIGTERM, SIGUSR1};
constexpr std::int64_t kOneRequestMs = 500;

// Handlers have no argument that could carry these. Both are lock-free, so the handler may touch them.
std::atomic<int> first_signal{0};
std::atomic<std::int64_t> first_signal_ms{0};
std::atomic<bool> second_is_counted{false};
std::atomic<bool> second_came{false};
static_assert(std::atomic<std::int64_t>::is_always_lock_free);

std::array<struct sigaction, kSignals.size()> previous_actions = {};

std::int64_t now_ms() {
  timespec time = {};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return std::int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000;
}

void on_signal(int number) {
  int none = 0;
  if (first_signal.compare_exchange_strong(none, number)) {
    first_signal_ms.store(now_ms());
  } else if (now_ms() - first_signal_ms.load() >= kOneRequestMs) {
    second_came.store(true);
    if (second_is_counted.load()) {
      return;
    }
    std::signal(number, SIG_DFL);
    std::raise(number);
  }
}

}  // namespace

void StopSignal::listen(Second second) {
  assert(!listening_);
  listening_ = true;
  first_signal.store(0);
  second_is_counted.store(second == Second::kIsCounted);
  second_came.store(false);
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], &action, &previous_actions[i]);
  }
}

StopSignal::~StopSignal() {
  if (listening_) {
    for (std::size_t i = 0; i < kSignals.size(); ++i) {
      sigaction(kSignals[i], &previous_actions[i], nullptr);
    }
  }
}

int StopSignal::number() const { return first_signal.load(); }

bool StopSignal::repeated() const { return second_came.load(); }

}  // namespace lockstep
