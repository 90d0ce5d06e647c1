// Sums and gathers of GPU memory, put into the group's stream.
//
// elastic: NCCL moves the bytes and tree_add() adds, as schedule.h explains. Otherwise NCCL does both, in an order that
// depends on the number of ranks, on their places and on the size of the buffer.
#pragma once

#include <span>
#include <vector>

#include "base/buffer.h"
#include "comm/nccl/group.h"
#include "comm/nccl/schedule.h"

namespace lockstep::nccl {

class Collectives {
 public:
  // `group` outlives this. elastic takes kScratchBytes of GPU memory. Throws Error(kUnsupported, kDevice).
  Collectives(Group& group, bool elastic);

  // To be called within Group::start(); arguments as in Communicator, checked. Throw Error, see Group.
  void all_reduce(const BufferView& data);
  void reduce_scatter(const BufferView& data, std::span<const ElementRange> owned);
  void all_gather(const BufferView& data, std::span<const ElementRange> owned);
  // By NCCL alone, whatever `elastic` says.
  void library_all_reduce(const BufferView& data);

 private:
  class Actions;

  [[nodiscard]] Exchange exchange_of(DType dtype) const;
  void library_reduce_scatter(const BufferView& data, std::span<const ElementRange> owned);

  Group& group_;
  const bool elastic_;
  Buffer scratch_;
  std::vector<ElementRange> parts_;  // a range for each rank, and a source: kept for their memory
  std::vector<void*> sources_;
};

}  // namespace lockstep::nccl
