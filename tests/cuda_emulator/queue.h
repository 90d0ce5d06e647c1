// Streams, events and graphs behind the runtime's handles.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/cuda_emulator/stream.h"

namespace lockstep::cuda_emulator {

class Queue;

// What a stream's operations become while it is captured: with those of the streams that joined it, in the order in
// which they were called.
struct Graph {
  std::vector<std::function<void()>> operations;
  Queue* origin = nullptr;
  std::thread::id thread;  // whose calls it forbids; of any thread where there is none
  std::vector<Queue*> joined;
  bool is_valid = true;  // false: a call was made that no capture survives
};

// A place in a stream.
class Point {
 public:
  void pass();
  void wait();
  [[nodiscard]] bool is_passed();

  // Set where it was recorded during a capture.
  std::shared_ptr<Graph> graph;
  Queue* queue = nullptr;
  std::size_t operations = 0;  // of the queue before it

 private:
  std::mutex mutex_;
  std::condition_variable passed_;
  bool is_passed_ = false;
};

class Queue final : public CUstream_st {
 public:
  Queue();
  ~Queue() override;

  void enqueue(std::function<void()> operation) override;
  [[nodiscard]] bool is_on_device(const void* data) const override { return cuda_emulator::is_on_device(data); }
  // Until what is in it now is done.
  void wait();

  [[nodiscard]] std::shared_ptr<Point> record();
  [[nodiscard]] cudaError_t wait_for(const std::shared_ptr<Point>& point);

  [[nodiscard]] cudaError_t begin_capture(cudaStreamCaptureMode mode);
  [[nodiscard]] cudaError_t end_capture(std::shared_ptr<Graph>& graph);
  [[nodiscard]] const std::shared_ptr<Graph>& capture() const { return capture_; }

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> operations_;
  bool is_ending_ = false;
  std::thread thread_;

  // During a capture:
  std::shared_ptr<Graph> capture_;
  std::size_t captured_ = 0;  // operations of this queue
  std::size_t rejoined_ = 0;  // of those, how many the origin waits for
};

// The stream behind a handle; null where there is none, as for the legacy stream, which the project does not use.
[[nodiscard]] Queue* queue_of(cudaStream_t stream);

// Puts an operation into a stream, which a broken GPU no longer does. Fails where there is no stream.
[[nodiscard]] cudaError_t put(cudaStream_t stream, std::function<void()> operation);
// What a call that a capture forbids fails with, when there is one that it would disturb.
[[nodiscard]] cudaError_t not_while_capturing();

// Until all streams are idle.
void wait_for_all_streams();
// Whether a call that a capture forbids may be made by this thread; makes the captures invalid where it may not.
[[nodiscard]] bool may_interrupt();

}  // namespace lockstep::cuda_emulator

struct CUevent_st {
  std::shared_ptr<lockstep::cuda_emulator::Point> point;  // null before it is recorded
};
struct CUgraph_st {
  std::shared_ptr<lockstep::cuda_emulator::Graph> graph;
};
struct CUgraphExec_st {
  std::shared_ptr<lockstep::cuda_emulator::Graph> graph;
};
