#include "trainer/checkpoint/background_thread.h"

#include <pthread.h>

#include <cassert>
#include <chrono>
#include <csignal>
#include <initializer_list>
#include <utility>

namespace lockstep {
namespace {

// Signals are the main thread's business; SIGXFSZ in particular becomes an EFBIG that the job can report. Those that
// mean a bug stay deliverable.
void block_signals() {
  sigset_t signals;
  sigfillset(&signals);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
    sigdelset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

}  // namespace

BackgroundThread::~BackgroundThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void BackgroundThread::post(std::function<void()> job) {
  if (inline_jobs_) {
    job();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    assert(!job_);
    job_ = std::move(job);
  }
  if (!thread_.joinable()) {
    thread_ = std::thread([this] { run(); });
  }
  changed_.notify_all();
}

void BackgroundThread::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !job_; });
}

bool BackgroundThread::sleep_for(double seconds) {
  std::unique_lock lock(mutex_);
  if (seconds <= 0) {  // without a system call
    return !stop_;
  }
  return !changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stop_; });
}

void BackgroundThread::run() {
  block_signals();
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || job_; });
    if (stop_) {
      return;
    }
    lock.unlock();
    job_();
    lock.lock();
    job_ = nullptr;
    changed_.notify_all();
  }
}

}  // namespace lockstep
