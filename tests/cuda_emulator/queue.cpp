#include "tests/cuda_emulator/queue.h"

#include <algorithm>
#include <set>
#include <thread>
#include <utility>

#include "tests/cuda_emulator/device.h"

namespace lockstep::cuda_emulator {
namespace {

// Every stream that there is. Never destroyed: streams live to the process's end.
struct Streams {
  std::mutex mutex;
  std::set<Queue*> all;
};
Streams& streams() {
  static Streams& all = *new Streams;
  return all;
}

}  // namespace

void Point::pass() {
  const std::lock_guard lock(mutex_);
  is_passed_ = true;
  passed_.notify_all();
}
void Point::wait() {
  std::unique_lock lock(mutex_);
  passed_.wait(lock, [this] { return is_passed_; });
}
bool Point::is_passed() {
  const std::lock_guard lock(mutex_);
  return is_passed_;
}

Queue::Queue() : thread_([this] { work(); }) {
  const std::lock_guard lock(streams().mutex);
  streams().all.insert(this);
}

Queue::~Queue() {
  {
    const std::lock_guard lock(streams().mutex);
    streams().all.erase(this);
  }
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void Queue::enqueue(std::function<void()> operation) {
  if (capture_) {
    ++captured_;
    capture_->operations.push_back(std::move(operation));
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    operations_.push_back(std::move(operation));
    changed_.notify_all();
  }
  static const bool waits = setting("LOCKSTEP_EMULATOR_WAITS", 0) != 0;
  if (waits) {
    wait();
  }
}

void Queue::work() {
  for (;;) {
    std::function<void()> operation;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return is_ending_ || !operations_.empty(); });
      if (operations_.empty()) {
        return;
      }
      operation = std::move(operations_.front());
      operations_.pop_front();
    }
    operation();
  }
}

void Queue::wait() {
  const auto point = std::make_shared<Point>();
  {
    const std::lock_guard lock(mutex_);
    operations_.emplace_back([point] { point->pass(); });
    changed_.notify_all();
  }
  point->wait();
}

std::shared_ptr<Point> Queue::record() {
  auto point = std::make_shared<Point>();
  if (capture_) {
    point->graph = capture_;
    point->queue = this;
    point->operations = captured_;
  } else {
    enqueue([point] { point->pass(); });
  }
  return point;
}

cudaError_t Queue::wait_for(const std::shared_ptr<Point>& point) {
  if (point == nullptr) {
    return cudaSuccess;
  }
  if (!point->graph) {
    if (capture_) {  // of work outside of the graph
      capture_->is_valid = false;
      return cudaErrorStreamCaptureIsolation;
    }
    enqueue([point] { point->wait(); });
    return cudaSuccess;
  }
  if (!capture_) {
    const std::lock_guard lock(streams().mutex);
    capture_ = point->graph;
    captured_ = rejoined_ = 0;
    capture_->joined.push_back(this);
  } else if (capture_ != point->graph) {
    return cudaErrorStreamCaptureMerge;
  }
  if (capture_->origin == this) {
    point->queue->rejoined_ = std::max(point->queue->rejoined_, point->operations);
  }
  return cudaSuccess;
}

cudaError_t Queue::begin_capture(cudaStreamCaptureMode mode) {
  if (capture_) {
    return cudaErrorIllegalState;
  }
  const std::lock_guard lock(streams().mutex);
  capture_ = std::make_shared<Graph>();
  capture_->origin = this;
  if (mode == cudaStreamCaptureModeThreadLocal) {
    capture_->thread = std::this_thread::get_id();
  }
  return cudaSuccess;
}

cudaError_t Queue::end_capture(std::shared_ptr<Graph>& graph) {
  if (!capture_ || capture_->origin != this) {
    return cudaErrorIllegalState;
  }
  const std::lock_guard lock(streams().mutex);
  graph = std::exchange(capture_, nullptr);
  bool all_came_back = true;
  for (Queue* queue : graph->joined) {
    all_came_back = all_came_back && queue->rejoined_ == queue->captured_;
    queue->capture_ = nullptr;
  }
  if (!graph->is_valid) {
    return cudaErrorStreamCaptureInvalidated;
  }
  return all_came_back ? cudaSuccess : cudaErrorStreamCaptureUnjoined;
}

Queue* queue_of(cudaStream_t stream) { return static_cast<Queue*>(stream); }

void wait_for_all_streams() {
  std::vector<Queue*> all;
  {
    const std::lock_guard lock(streams().mutex);
    all.assign(streams().all.begin(), streams().all.end());
  }
  for (Queue* queue : all) {
    queue->wait();
  }
}

bool may_interrupt() {
  const std::lock_guard lock(streams().mutex);
  bool captures = false;
  for (Queue* queue : streams().all) {
    if (queue->capture() &&
        (queue->capture()->thread == std::thread::id() || queue->capture()->thread == std::this_thread::get_id())) {
      captures = true;
      queue->capture()->is_valid = false;
    }
  }
  return !captures;
}

}  // namespace lockstep::cuda_emulator
