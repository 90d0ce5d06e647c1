// Sums over the ranks of one MPI communicator by messages: between nodes, and among all ranks where nodes do not fit
// the tree.
//
// n ranks, S bytes. With n a power of two: recursive halving, then recursive doubling.
//   step 1      with neighbour r^1: send one half, receive the other half's partner and add it     S/2 bytes
//   step 2      with r^2, the half of that half                                                    S/4
//   ...         after log2(n) steps each rank holds S/n bytes of the finished sum
//   then back   with r^(n/2), ..., r^2, r^1: send what is finished, receive its other half         S/n ... S/2
// What a rank adds in step k is its own and its neighbour's value of a tree node of level k, so the tree is kept.
// With any other n: cut the data in n parts, send part p to rank p, which adds its n versions in tree order, and sends
// the sum to all. Either way a rank sends and receives 2 S (n-1)/n bytes, the least possible. Up to
// 16 KiB the messages cost more than what is in them: there n = 2^k ranks exchange the whole in each of log2(n) steps,
// half as many.
#pragma once

#include <mpi.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "comm/mpi/watch.h"

namespace lockstep::mpi {

class Exchange {
 public:
  // `ranks` are the members of `comm`, in its order, as ranks of the world: for the messages of errors.
  Exchange(MPI_Comm comm, std::vector<int> ranks, Watch& watch);

  // Collective. Replaces `data` (f32 or f64, the same count everywhere) by its sum over the members, their order in the
  // communicator being their order at the leaves.
  void sum(const BufferView& data);

  // Collective. The same sum, of which member m receives owned[m] only; the ranges cover `data`. The finished parts go
  // straight to their owners: S (n-1)/n bytes, and what is not owned of S/n.
  void reduce_scatter(const BufferView& data, std::span<const ElementRange> owned);
  // Collective. Copies owned[m] of member m's data to all others, which takes no detours: every member sends its own
  // range n-1 times.
  void all_gather(const BufferView& data, std::span<const ElementRange> owned);

  // Collective. Whether `holds` on every member. Throws Error(kUsage) when members are about to sum different counts or
  // types.
  [[nodiscard]] bool agree(std::size_t count, DType dtype, bool holds);

 private:
  // One step of the halving, seen from a member: it keeps one half of its range and gives the other to its partner.
  struct Step {
    std::size_t partner = 0;
    ElementRange kept;
    ElementRange given;
  };
  [[nodiscard]] std::vector<Step> halving_steps(std::size_t member, std::size_t count) const;

  void double_whole(const BufferView& data);
  void halve(const BufferView& data);
  void double_back(const BufferView& data);
  // Calls use(block, begin) for each piece that is exchanged directly at a time.
  template <typename Use>
  void for_each_block(const BufferView& data, const Use& use) const;
  // Member m's part of a block that is exchanged directly.
  [[nodiscard]] ElementRange part_of(std::size_t member, std::size_t count) const;
  // Sums this member's part of the block.
  void sum_part(const BufferView& block);
  // Sends and receives so that every member has owned[m], when member m has finished(m).
  template <typename Finished>
  void deliver(const BufferView& data, const Finished& finished, std::span<const ElementRange> owned);
  // Sends `give` to `partner` and adds the partner's version of `keep` to it.
  void trade(const BufferView& give, const BufferView& keep, std::size_t partner);
  void swap(const BufferView& give, const BufferView& take, std::size_t partner, std::size_t message_bytes);

  // Messages under way, each with the member at the other end. Destroyed early, by an error, it withdraws the receives
  // that have not begun, since the memory they would write to may go away.
  class Messages;
  struct Message {
    MPI_Request request = MPI_REQUEST_NULL;
    std::size_t other = 0;
    std::size_t size_bytes = 0;
    bool is_receive = false;
  };

  MPI_Comm comm_;
  const std::vector<int> ranks_;
  std::size_t rank_ = 0;
  Watch& watch_;
  std::vector<std::byte> scratch_;
  std::vector<Message> sends_;  // empty between calls; kept for their memory, as short sums feel an allocation
  std::vector<Message> receives_;
  std::array<std::uint64_t, 3> proposal_{};  // members since MPI may write to them after an error
  std::array<std::uint64_t, 3> agreement_{};
};

}  // namespace lockstep::mpi
