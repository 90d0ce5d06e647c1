#include "ops/cuda/recorder.h"

#include <utility>

#include "base/error.h"

namespace lockstep::cuda {

namespace {

// Lets this thread take memory while its stream is captured.
class CallsThatMayWait {
 public:
  CallsThatMayWait() { exchange(); }
  ~CallsThatMayWait() { exchange(); }
  CallsThatMayWait(const CallsThatMayWait&) = delete;
  CallsThatMayWait& operator=(const CallsThatMayWait&) = delete;

 private:
  void exchange() { static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode_)); }

  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

// Graphs and what the host does between them. Its destructor waits: a graph must not go while it runs.
class GraphRecording final : public Backend::Recording {
 public:
  explicit GraphRecording(std::shared_ptr<void> counted) : counted_(std::move(counted)) {}
  GraphRecording(const GraphRecording&) = delete;
  GraphRecording& operator=(const GraphRecording&) = delete;
  ~GraphRecording() override {
    static_cast<void>(cudaStreamSynchronize(compute_stream().get()));
    for (const Part& part : parts_) {
      if (part.graph != nullptr) {
        static_cast<void>(cudaGraphExecDestroy(part.graph));
      }
    }
  }

  void run() override {
    done_.synchronize();  // the last run has read its inputs
    for (const Input& input : inputs_) {
      input.fill({input.pinned.data(), input.pinned.size_bytes()});
    }
    for (const Part& part : parts_) {
      if (part.graph != nullptr) {
        launch(part.graph);
      } else {
        part.host_work();
      }
    }
    mark_end();
  }

  const std::byte* add_input(std::size_t size_bytes, std::function<void(std::span<std::byte>)> fill) {
    inputs_.push_back({allocate_pinned(size_bytes), std::move(fill)});
    const Input& input = inputs_.back();
    input.fill({input.pinned.data(), size_bytes});
    return input.pinned.data();
  }
  // Takes the graph, and runs it.
  void add_graph(cudaGraphExec_t graph) {
    parts_.push_back({graph, {}});
    launch(graph);
  }
  void add_host_work(std::function<void()> host_work) { parts_.push_back({nullptr, std::move(host_work)}); }
  void mark_end() { done_.record(compute_stream().get()); }

 private:
  struct Input {
    Buffer pinned;
    std::function<void(std::span<std::byte>)> fill;
  };
  struct Part {
    cudaGraphExec_t graph = nullptr;  // null: host_work
    std::function<void()> host_work;
  };

  static void launch(cudaGraphExec_t graph) {
    check(cudaGraphLaunch(graph, compute_stream().get()), "device: running a recorded step");
  }

  std::shared_ptr<void> counted_;
  std::vector<Input> inputs_;
  std::vector<Part> parts_;
  Event done_;
};

std::unique_ptr<Backend::Recording> Recorder::record(const std::function<void()>& work) {
  auto recording = std::make_unique<GraphRecording>(recordings_);
  current_ = recording.get();
  try {
    begin_segment();
    work();
    end_segment();
  } catch (const Error& error) {
    const bool was_capturing = discard_segment();
    current_ = nullptr;
    if (was_capturing && error.code() == ErrorCode::kDevice) {
      fail(error.code(), "{}; device.graph: false does without recording", error.what());
    }
    throw;
  } catch (...) {
    discard_segment();
    current_ = nullptr;
    throw;
  }
  current_ = nullptr;
  recording->mark_end();
  return recording;
}

void Recorder::between(const std::function<void()>& host_work) {
  if (!is_capturing_) {
    host_work();
    return;
  }
  end_segment();
  host_work();
  current_->add_host_work(host_work);
  begin_segment();
}

const std::byte* Recorder::input(std::size_t size_bytes, std::function<void(std::span<std::byte>)> fill) {
  const CallsThatMayWait allowed;
  return current_->add_input(size_bytes, std::move(fill));
}

void Recorder::let_go(Buffer memory) {
  if (memory.size_bytes() == 0) {
    return;
  }
  if (recordings_.use_count() > 1) {
    kept_.push_back(std::move(memory));
    return;
  }
  compute_stream().synchronize();
  kept_.clear();
}

// Calls of other threads, which read and save, are none of the capture's business.
void Recorder::begin_segment() {
  check(cudaStreamBeginCapture(compute_stream().get(), cudaStreamCaptureModeThreadLocal), "device: recording a step");
  is_capturing_ = true;
}

void Recorder::end_segment() {
  is_capturing_ = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(compute_stream().get(), &graph), "device: recording a step");
  cudaGraphExec_t ready = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&ready, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  check(status, "device: preparing a recorded step");
  current_->add_graph(ready);
}

bool Recorder::discard_segment() noexcept {
  const bool was_capturing = std::exchange(is_capturing_, false);
  if (was_capturing) {
    cudaGraph_t graph = nullptr;
    static_cast<void>(cudaStreamEndCapture(compute_stream().get(), &graph));
    if (graph != nullptr) {
      static_cast<void>(cudaGraphDestroy(graph));
    }
    static_cast<void>(cudaGetLastError());
  }
  return was_capturing;
}

}  // namespace lockstep::cuda
