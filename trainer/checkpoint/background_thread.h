// One thread that runs one job at a time.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace lockstep {

class BackgroundThread {
 public:
  // With `inline_jobs`, no thread is started and post() runs the job before it returns.
  explicit BackgroundThread(bool inline_jobs) : inline_jobs_(inline_jobs) {}
  // Asks the job to stop and waits for it.
  ~BackgroundThread();
  BackgroundThread(const BackgroundThread&) = delete;
  BackgroundThread& operator=(const BackgroundThread&) = delete;

  // The job must not throw. Only while idle.
  void post(std::function<void()> job);
  // Blocks until idle.
  void wait();
  // For the job: sleeps, or returns false at once when the owner wants the job to stop.
  [[nodiscard]] bool sleep_for(double seconds);

 private:
  void run();

  const bool inline_jobs_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> job_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace lockstep
