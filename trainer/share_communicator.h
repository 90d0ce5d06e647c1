// The communicator of a worker whose gradients nobody adds to its own: it has a rank, and with it a share of each step,
// but what it sums stays as it is, and what it gathers is its own.
#pragma once

#include <algorithm>

#include "comm/communicator.h"

namespace lockstep {

class ShareCommunicator final : public Communicator {
 public:
  ShareCommunicator(int rank, int world) : rank_(rank), world_(world) {}

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int world_size() const override { return world_; }
  [[nodiscard]] int node_size() const override { return 1; }
  [[nodiscard]] std::string description() const override { return "servers that hold the weights"; }
  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return Buffer::allocate(size_bytes); }
  [[nodiscard]] Work all_reduce_sum(BufferView) override { return {}; }
  [[nodiscard]] Work reduce_scatter_sum(BufferView, std::span<const ElementRange>) override { return {}; }
  [[nodiscard]] Work all_gather_ranges(BufferView, std::span<const ElementRange>) override { return {}; }
  void broadcast(std::span<std::byte>, int) override {}
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    for (std::size_t begin = 0; begin < all.size(); begin += mine.size()) {
      std::copy(mine.begin(), mine.end(), all.begin() + static_cast<std::ptrdiff_t>(begin));
    }
  }
  void barrier() override {}
  [[nodiscard]] double time_library_sum(BufferView, int) override { return 0; }

 private:
  int rank_;
  int world_;
};

}  // namespace lockstep
