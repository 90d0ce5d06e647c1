// The communicator of a world of one rank: every sum is its input.
#pragma once

#include "comm/communicator.h"

namespace lockstep {

class SelfCommunicator final : public Communicator {
 public:
  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int world_size() const override { return 1; }
  [[nodiscard]] int node_size() const override { return 1; }
  [[nodiscard]] std::string description() const override { return "self: 1 rank"; }

  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override;
  [[nodiscard]] Work all_reduce_sum(BufferView data) override;
  [[nodiscard]] Work reduce_scatter_sum(BufferView data, std::span<const ElementRange> owned) override;
  [[nodiscard]] Work all_gather_ranges(BufferView data, std::span<const ElementRange> owned) override;
  void broadcast(std::span<std::byte> bytes, int root) override;
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void barrier() override {}
  [[nodiscard]] double time_library_sum(BufferView, int) override { return 0; }
};

}  // namespace lockstep
