#include "trainer/staged_communicator.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace lockstep {
namespace {

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(Communicator& host, Backend& backend) : host_(host), backend_(backend) {}

  [[nodiscard]] int rank() const override { return host_.rank(); }
  [[nodiscard]] int world_size() const override { return host_.world_size(); }
  [[nodiscard]] int node_size() const override { return host_.node_size(); }
  [[nodiscard]] std::string description() const override { return host_.description() + ", through host memory"; }

  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return host_.allocate(size_bytes); }

  [[nodiscard]] Work all_reduce_sum(BufferView data) override {
    if (!is_on_device(data)) {
      return host_.all_reduce_sum(data);
    }
    return stage(data, {{0, data.count}}, {{0, data.count}},
                 [&](const BufferView& staged) { return host_.all_reduce_sum(staged); });
  }
  [[nodiscard]] Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) override {
    if (!is_on_device(data)) {
      return host_.reduce_scatter_sum(data, owned);
    }
    return stage(data, {{0, data.count}}, {owned[static_cast<std::size_t>(rank())]},
                 [&](const BufferView& staged) { return host_.reduce_scatter_sum(staged, owned); });
  }
  [[nodiscard]] Work all_gather_ranges(BufferView data, std::span<const ElementRange> owned) override {
    if (!is_on_device(data)) {
      return host_.all_gather_ranges(data, owned);
    }
    return stage(data, {owned[static_cast<std::size_t>(rank())]}, {owned.begin(), owned.end()},
                 [&](const BufferView& staged) { return host_.all_gather_ranges(staged, owned); });
  }

  void broadcast(std::span<std::byte> bytes, int root) override { host_.broadcast(bytes, root); }
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override { host_.all_gather(mine, all); }
  void barrier() override { host_.barrier(); }
  [[nodiscard]] double time_library_sum(BufferView data, int repeats) override {
    return is_on_device(data) ? 0 : host_.time_library_sum(data, repeats);
  }

 private:
  // A call on its way: what it is staged in, and what comes back to the device.
  class Staged final : public Work::State {
   public:
    Staged(StagedCommunicator& owner, const BufferView& data, Buffer buffer, std::vector<ElementRange> results)
        : owner_(owner), data_(data), buffer_(std::move(buffer)), results_(std::move(results)) {}

    [[nodiscard]] BufferView staged() const { return {buffer_.data(), data_.count, data_.dtype, Device{}}; }
    void start(Work work) { work_ = std::move(work); }
    void wait() override {
      work_.wait();
      if (buffer_.data() == nullptr) {
        return;
      }
      for (const ElementRange& range : results_) {
        owner_.backend_.copy(staged().slice(range), data_.slice(range));
      }
      owner_.free_.push_back(std::move(buffer_));
    }
    [[nodiscard]] bool is_done() const override { return work_.is_done(); }

   private:
    StagedCommunicator& owner_;
    BufferView data_;
    Buffer buffer_;
    std::vector<ElementRange> results_;
    Work work_;
  };

  [[nodiscard]] static bool is_on_device(const BufferView& data) { return data.device.kind != DeviceKind::kCpu; }

  template <typename Start>
  Work stage(const BufferView& data, std::vector<ElementRange> inputs, std::vector<ElementRange> results,
             const Start& start) {
    if (world_size() == 1) {
      return {};  // what a rank alone has is the sum
    }
    auto call = std::make_shared<Staged>(*this, data, take(data.size_bytes()), std::move(results));
    for (const ElementRange& range : inputs) {
      backend_.copy(data.slice(range), call->staged().slice(range));
    }
    call->start(start(call->staged()));
    return Work(std::move(call));
  }

  // The smallest free buffer that is large enough. Ranks make the same calls, so they find or make the same ones.
  Buffer take(std::size_t size_bytes) {
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->size_bytes() >= size_bytes && (best == free_.end() || it->size_bytes() < best->size_bytes())) {
        best = it;
      }
    }
    if (best == free_.end()) {
      return host_.allocate(size_bytes);
    }
    Buffer buffer = std::move(*best);
    free_.erase(best);
    return buffer;
  }

  Communicator& host_;
  Backend& backend_;
  std::vector<Buffer> free_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(Communicator& host, Backend& backend) {
  return std::make_unique<StagedCommunicator>(host, backend);
}

}  // namespace lockstep
