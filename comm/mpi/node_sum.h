// Sums over the ranks of a node in shared memory, and over all nodes with an Exchange in the middle.
//
// Every rank's data lies where all ranks of the node can read and write it. With k ranks, S bytes:
//   1. raise "arrived"; wait until all have arrived
//   2. rank i takes the i-th k-th of the data: reads it from all k segments, adds in tree order, writes the sum
//      to all k segments                                              reads S, writes S bytes a rank: each byte once
//   3. raise "done"; wait until all are done
// With more nodes, rank i writes its part of step 2 to its own segment only, sums it with the ranks i of the other
// nodes by messages, and then copies it to the other segments: what crosses the network is cut by k. Data outside the
// windows of allocate() goes through staging memory in pieces, two of them in turn: while a piece is summed, the next
// is copied in.
#pragma once

#include <mpi.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "comm/mpi/exchange.h"
#include "comm/mpi/flag.h"
#include "comm/mpi/shared_window.h"
#include "comm/mpi/watch.h"

namespace lockstep::mpi {

class NodeSum {
 public:
  // Collective over `node`, whose members are `ranks` of the world. `between_nodes` (may be null) sums over this rank's
  // counterparts. Throws Error(kUnsupported) when shared memory has no room for the flags and the staging memory.
  NodeSum(MPI_Comm node, std::vector<int> ranks, Exchange* between_nodes, Watch& watch);
  NodeSum(const NodeSum&) = delete;
  NodeSum& operator=(const NodeSum&) = delete;

  // Collective. Memory in a new window, or nothing when the node has no room for it; freed when `in_use` is false on
  // every rank and a later allocation or close() comes by.
  struct Allocation {
    void* data = nullptr;
    std::shared_ptr<std::atomic<bool>> in_use;
  };
  [[nodiscard]] std::optional<Allocation> allocate(std::size_t size_bytes);

  void sum(const BufferView& data) { reduce(data, {}); }
  // The same sum, of which rank r of the world receives owned[r] only; the ranges cover `data`. Each part is summed as
  // above and written to its owners' segments. `owned` has a range for each rank of the world.
  void reduce_scatter(const BufferView& data, std::span<const ElementRange> owned) { reduce(data, owned); }
  // Copies owned[r] of rank r's data to all other ranks: with more nodes first to the rank's counterparts, by messages;
  // then every rank reads what it lacks from the segments of its node.
  void all_gather(const BufferView& data, std::span<const ElementRange> owned);

  [[nodiscard]] bool has_memory_in_use() const;
  // Collective: frees all windows.
  void close();

 private:
  // Where a rank's data lies, for the others: window 0 is the staging memory.
  struct Place {
    std::uint64_t count = 0;
    std::uint64_t offset_bytes = 0;
    std::uint32_t window = 0;
    DType dtype = DType::kF32;
  };
  // The first page of a rank's segment in the control window; the staging memory follows it.
  struct Control {
    Flag arrived;
    Flag done;
    alignas(64) Place place;
  };
  struct DataWindow {
    std::uint32_t number = 0;
    SharedWindow window;
    std::shared_ptr<std::atomic<bool>> in_use;
  };

  [[nodiscard]] std::size_t world_rank(std::size_t local_rank) const {
    return static_cast<std::size_t>(ranks_[local_rank]);
  }
  [[nodiscard]] Control& control(std::size_t local_rank) const;
  [[nodiscard]] std::byte* staging(std::size_t local_rank, std::size_t piece) const;
  [[nodiscard]] Place find(const BufferView& data) const;
  // Whether the data of all ranks, on all nodes, lies in windows. Throws Error(kUsage) when counts or types differ.
  [[nodiscard]] bool is_in_windows_everywhere(const Place& own) const;
  // To the owners, or to every rank where `owned` is empty.
  void reduce(const BufferView& data, std::span<const ElementRange> owned);
  void sum_in_place(const BufferView& data, std::span<const ElementRange> owned);
  void sum_in_pieces(const BufferView& data, std::span<const ElementRange> owned);
  // Sums this rank's part of elements `range`, with which arrays_ begin.
  void sum_part(const ElementRange& range, DType dtype, std::span<const ElementRange> owned);
  void sum_between_nodes(const ElementRange& part, const BufferView& own, std::span<const ElementRange> owned);
  // Moves arrays_, which begin with `range`, to element `begin`, and sources_ with them.
  void point_at(std::uint64_t begin, const ElementRange& range, DType dtype);
  // The ranges of rank `local_rank` of this node and of its counterparts in the others.
  template <typename Use>
  void for_each_range_at(std::size_t local_rank, std::span<const ElementRange> owned, const Use& use) const;
  void gather_in_place(const BufferView& data, std::span<const ElementRange> owned);
  void gather_in_pieces(const BufferView& data, std::span<const ElementRange> owned);
  // All ranks of the node arrive, and end what they do with each other's data.
  void arrive();
  void part_ways();
  [[nodiscard]] std::byte* resolve(std::size_t local_rank, const Place& place) const;
  void wait_for_all(Flag Control::*flag, std::uint32_t number);
  void free_unused();

  MPI_Comm node_;
  const std::vector<int> ranks_;
  Exchange* between_nodes_;
  Watch& watch_;
  std::size_t local_rank_ = 0;
  std::optional<SharedWindow> control_window_;
  std::uint32_t pieces_so_far_ = 0;  // the number that both flags have after the last call
  std::uint32_t windows_so_far_ = 0;
  std::vector<DataWindow> windows_;
  std::vector<std::byte*> arrays_;  // by rank of the node: its data, or a piece of it, as all of them see it
  std::vector<const std::byte*> sources_;
  std::vector<ElementRange> between_nodes_owned_;  // by node, for the exchange between them
  std::vector<std::uint8_t> in_use_here_;          // by window; members since MPI may write to them after an error
  std::vector<std::uint8_t> in_use_anywhere_;
};

}  // namespace lockstep::mpi
