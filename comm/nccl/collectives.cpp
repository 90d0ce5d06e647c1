#include "comm/nccl/collectives.h"

#include <cstdint>
#include <optional>

#include "base/cuda/runtime.h"
#include "base/error.h"
#include "comm/nccl/tree_add.h"

namespace lockstep::nccl {
namespace {

ncclDataType_t type_of(DType dtype) { return dtype == DType::kF64 ? ncclFloat64 : ncclFloat32; }

std::byte* bytes_of(const BufferView& view) { return static_cast<std::byte*>(view.data); }

}  // namespace

// What the schedule calls, for one buffer. Everything is put into the group's stream, so one step follows another, and
// the slots of one round are free when the next receives into them.
class Collectives::Actions {
 public:
  Actions(Collectives& self, const Exchange& exchange, const BufferView& data)
      : group_(self.group_),
        library_(self.group_.library()),
        exchange_(exchange),
        data_(data),
        scratch_(self.scratch_.data()),
        sources_(self.sources_) {}

  void begin_messages() { messages_.emplace(group_); }

  void send(const ElementRange& range, std::size_t peer) {
    const BufferView part = data_.slice(range);
    group_.check(library_.send(part.data, part.count, type_of(data_.dtype), static_cast<int>(peer), group_.comm(),
                               group_.stream()));
  }

  void receive(std::size_t peer, const ElementRange& range) {
    group_.check(library_.recv(slot_of(peer, range), range.size(), type_of(data_.dtype), static_cast<int>(peer),
                               group_.comm(), group_.stream()));
  }

  void end_messages() {
    messages_->end();
    messages_.reset();
  }

  void add(const ElementRange& range) {
    void* const own = data_.slice(range).data;
    for (std::size_t peer = 0; peer < exchange_.world_size; ++peer) {
      sources_[peer] = exchange_.sends_to(peer) ? slot_of(peer, range) : own;
    }
    tree_add(sources_, own, range.size(), data_.dtype, group_.stream());
  }

  // In place, as NCCL wants it: what is sent lies where it is received.
  void gather(std::uint64_t part_elements) {
    const BufferView mine = data_.slice(exchange_.rank * part_elements, part_elements);
    group_.settle(library_.all_gather(mine.data, data_.data, part_elements, type_of(data_.dtype), group_.comm(),
                                      group_.stream()));
  }

  void gather_and_add(const ElementRange& range) {
    const BufferView mine = data_.slice(range);
    group_.settle(
        library_.all_gather(mine.data, scratch_, mine.count, type_of(data_.dtype), group_.comm(), group_.stream()));
    for (std::size_t peer = 0; peer < exchange_.world_size; ++peer) {
      sources_[peer] = scratch_ + peer * mine.size_bytes();
    }
    tree_add(sources_, mine.data, mine.count, data_.dtype, group_.stream());
  }

 private:
  // Where `peer`'s version of the range is received: as far behind a multiple of kAlignmentBytes as the range itself.
  [[nodiscard]] void* slot_of(std::size_t peer, const ElementRange& range) const {
    const auto address = reinterpret_cast<std::uintptr_t>(data_.slice(range).data);
    return scratch_ + peer * exchange_.slot_bytes + address % kAlignmentBytes;
  }

  Group& group_;
  const Library& library_;
  const Exchange& exchange_;
  const BufferView& data_;
  std::byte* const scratch_;
  std::vector<void*>& sources_;
  std::optional<CallGroup> messages_;
};

Collectives::Collectives(Group& group, bool elastic)
    : group_(group), elastic_(elastic), parts_(group.world_size()), sources_(group.world_size()) {
  if (!elastic) {
    return;
  }
  if (group.world_size() > kMaxRanks) {
    fail(ErrorCode::kUnsupported, "comm: {} ranks, elastic sums between GPUs take at most {}", group.world_size(),
         kMaxRanks);
  }
  // At once, since the GPU may stop for an allocation, and a rank that stops in the midst of a sum stops the others.
  scratch_ = cuda::allocate_device(kScratchBytes);
}

void Collectives::all_reduce(const BufferView& data) {
  if (data.count == 0) {
    return;
  }
  if (!elastic_) {
    library_all_reduce(data);
    return;
  }
  const Exchange exchange = exchange_of(data.dtype);
  Actions actions(*this, exchange, data);
  nccl::all_reduce(exchange, cut_all_reduce(data.count, group_.world_size(), size_of(data.dtype)), parts_, actions);
}

void Collectives::library_all_reduce(const BufferView& data) {
  group_.settle(group_.library().all_reduce(data.data, data.data, data.count, type_of(data.dtype), ncclSum,
                                            group_.comm(), group_.stream()));
}

void Collectives::reduce_scatter(const BufferView& data, std::span<const ElementRange> owned) {
  if (data.count == 0) {
    return;
  }
  if (!elastic_) {
    library_reduce_scatter(data, owned);
    return;
  }
  const Exchange exchange = exchange_of(data.dtype);
  Actions actions(*this, exchange, data);
  nccl::reduce_scatter(exchange, owned, actions);
}

void Collectives::library_reduce_scatter(const BufferView& data, std::span<const ElementRange> owned) {
  const Library& library = group_.library();
  const ncclDataType_t type = type_of(data.dtype);
  if (const std::optional<std::uint64_t> size = equal_size(owned)) {
    void* const mine = data.slice(owned[group_.rank()]).data;
    group_.settle(library.reduce_scatter(data.data, mine, *size, type, ncclSum, group_.comm(), group_.stream()));
    return;
  }
  CallGroup calls(group_);
  for (std::size_t owner = 0; owner < owned.size(); ++owner) {
    if (owned[owner].size() > 0) {
      const BufferView part = data.slice(owned[owner]);
      group_.check(library.reduce(part.data, part.data, part.count, type, ncclSum, static_cast<int>(owner),
                                  group_.comm(), group_.stream()));
    }
  }
  calls.end();
}

// Bytes are moved, whatever they mean.
void Collectives::all_gather(const BufferView& data, std::span<const ElementRange> owned) {
  if (data.count == 0) {
    return;
  }
  const Library& library = group_.library();
  const std::size_t element_bytes = size_of(data.dtype);
  if (const std::optional<std::uint64_t> size = equal_size(owned)) {
    std::byte* const all = bytes_of(data) + owned[0].begin * element_bytes;
    group_.settle(library.all_gather(all + group_.rank() * *size * element_bytes, all, *size * element_bytes, ncclUint8,
                                     group_.comm(), group_.stream()));
    return;
  }
  CallGroup calls(group_);
  for (std::size_t owner = 0; owner < owned.size(); ++owner) {
    if (owned[owner].size() > 0) {
      const BufferView part = data.slice(owned[owner]);
      group_.check(library.broadcast(part.data, part.data, part.size_bytes(), ncclUint8, static_cast<int>(owner),
                                     group_.comm(), group_.stream()));
    }
  }
  calls.end();
}

Exchange Collectives::exchange_of(DType dtype) const {
  return make_exchange(group_.rank(), group_.world_size(), size_of(dtype));
}

}  // namespace lockstep::nccl
