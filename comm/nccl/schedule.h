// How a sum over the memory of n GPUs is cut into messages and additions that keep the tree of comm/sum_tree.h.
//
// NCCL adds in an order of its own, so it only carries bytes here. S bytes, n ranks:
//   1  the buffer is cut in n parts; rank q receives part q in all other ranks' versions     S (n-1)/n in and out
//   2  rank q adds its n versions along the tree, with one kernel
//   3  all-reduce only: the finished parts are gathered                                     S (n-1)/n in and out
// What is received lies in scratch memory, one slot for each rank. A part that is larger than a slot takes several
// rounds of steps 1 and 2. A short buffer is gathered whole by every rank, which then adds all of it: one operation of
// NCCL instead of two. The same goes for what is left when a buffer does not divide into n aligned parts.
//
// A rank reads its own version where it is, without a message. Only a rank that is alone sends to itself, so that the
// whole path can be run on one GPU.
//
// The functions call `actions`, which a communicator carries out and a test records:
//   begin_messages(), end_messages()       the sends and receives between them are one exchange
//   send(range, peer)                      elements `range` of the buffer
//   receive(peer, range)                   its version of elements `range`, into the slot of `peer`
//   add(range)                             range = tree sum over its own version and what the slots hold
//   gather(part_elements)                  every rank gets elements [r, r + 1) * part_elements of each rank r
//   gather_and_add(range)                  every rank gets every version of `range` and adds them
// Every rank goes through it with the same arguments but its own `rank`. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "base/buffer.h"

namespace lockstep::nccl {

inline constexpr std::size_t kScratchBytes = std::size_t{64} << 20;
// Parts and pieces are multiples of it where the buffer allows: the widest access of a GPU.
inline constexpr std::size_t kAlignmentBytes = 16;
// Up to this size a buffer is gathered whole.
inline constexpr std::size_t kWholeBytes = std::size_t{32} << 10;
// With more, a slot or what a rank gathers whole would no longer fit the scratch memory.
inline constexpr std::size_t kMaxRanks = 1024;

struct Exchange {
  std::size_t rank = 0;
  std::size_t world_size = 1;
  std::size_t slot_bytes = 0;        // from one slot to the next
  std::uint64_t piece_elements = 0;  // the most a slot takes, at any alignment

  [[nodiscard]] bool sends_to(std::size_t peer) const { return peer != rank || world_size == 1; }
};

[[nodiscard]] Exchange make_exchange(std::size_t rank, std::size_t world_size, std::size_t element_bytes);

// The part of what one rank owns that is exchanged in a round; empty when the rank is through.
[[nodiscard]] ElementRange piece_of(const ElementRange& owned, std::uint64_t round, std::uint64_t piece_elements);
[[nodiscard]] std::uint64_t round_count(std::span<const ElementRange> owned, std::uint64_t piece_elements);

// The size of every range when all are of one size and follow one another, as NCCL's own collectives want them.
[[nodiscard]] std::optional<std::uint64_t> equal_size(std::span<const ElementRange> owned);

// n parts of one size from the beginning, and what is left.
struct Cut {
  std::uint64_t part_elements = 0;  // 0: there are none
  ElementRange rest;
};
[[nodiscard]] Cut cut_all_reduce(std::uint64_t count, std::size_t world_size, std::size_t element_bytes);

// Leaves the sum of elements owned[rank] with this rank. The other ranges stay as they were.
template <typename Actions>
void reduce_scatter(const Exchange& exchange, std::span<const ElementRange> owned, Actions& actions) {
  const std::uint64_t rounds = round_count(owned, exchange.piece_elements);
  for (std::uint64_t round = 0; round < rounds; ++round) {
    const ElementRange mine = piece_of(owned[exchange.rank], round, exchange.piece_elements);
    actions.begin_messages();
    for (std::size_t peer = 0; peer < exchange.world_size; ++peer) {
      if (!exchange.sends_to(peer)) {
        continue;
      }
      const ElementRange theirs = piece_of(owned[peer], round, exchange.piece_elements);
      if (theirs.size() > 0) {
        actions.send(theirs, peer);
      }
      if (mine.size() > 0) {
        actions.receive(peer, mine);
      }
    }
    actions.end_messages();
    if (mine.size() > 0) {
      actions.add(mine);
    }
  }
}

// Leaves the sum of all elements with every rank. `parts` is memory for world_size ranges.
template <typename Actions>
void all_reduce(const Exchange& exchange, const Cut& cut, std::span<ElementRange> parts, Actions& actions) {
  if (cut.part_elements > 0) {
    for (std::size_t r = 0; r < parts.size(); ++r) {
      parts[r] = {r * cut.part_elements, (r + 1) * cut.part_elements};
    }
    reduce_scatter(exchange, parts, actions);
    actions.gather(cut.part_elements);
  }
  if (cut.rest.size() > 0) {
    actions.gather_and_add(cut.rest);
  }
}

}  // namespace lockstep::nccl
