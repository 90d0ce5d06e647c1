#include "ops/arena.h"

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <bit>

namespace lockstep {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kSlabBytes = std::size_t{64} << 20;

// Size classes: eight to each doubling from 512 bytes up, so that at most an eighth of a block is wasted.
struct SizeClass {
  std::uint32_t index;
  std::size_t size_bytes;
};

SizeClass size_class_of(std::size_t size_bytes) {
  const std::size_t units = std::max<std::size_t>((size_bytes + kAlignment - 1) / kAlignment, 8);
  const int exponent = static_cast<int>(std::bit_width(units - 1)) - 3;  // units <= 8 << exponent
  const int shift = std::max(exponent - 1, 0);                           // a class step is 1 << shift units
  const std::size_t steps = (units + (std::size_t{1} << shift) - 1) >> shift;
  return {static_cast<std::uint32_t>(shift * 16) + static_cast<std::uint32_t>(steps), (steps << shift) * kAlignment};
}

}  // namespace

Arena::~Arena() {
  for (const Buffer& slab : slabs_) {
    ASAN_UNPOISON_MEMORY_REGION(slab.data(), slab.size_bytes());
  }
}

Arena::Block* Arena::allocate(std::size_t size_bytes) {
  const SizeClass size_class = size_class_of(size_bytes);
  if (free_.size() <= size_class.index) {
    free_.resize(size_class.index + 1);
  }
  std::vector<Block*>& free_list = free_[size_class.index];
  Block* block = nullptr;
  if (free_list.empty()) {
    block = new_record();
    block->arena = this;
    block->size_class = size_class.index;
    block->size_bytes = size_class.size_bytes;
    block->data = take_from_system(size_class.size_bytes);
  } else {
    block = free_list.back();
    free_list.pop_back();
  }
  block->references = 1;
  ASAN_UNPOISON_MEMORY_REGION(block->data, size_bytes);
  return block;
}

void Arena::release(Block* block) {
  ASAN_POISON_MEMORY_REGION(block->data, block->size_bytes);
  free_[block->size_class].push_back(block);
}

std::byte* Arena::take_from_system(std::size_t size_bytes) {
  if (size_bytes > slab_left_bytes_) {
    const std::size_t slab_bytes = std::max(kSlabBytes, size_bytes);
    slabs_.push_back(allocate_(slab_bytes));
    ASAN_POISON_MEMORY_REGION(slabs_.back().data(), slab_bytes);
    reserved_bytes_ += slab_bytes;
    if (slab_bytes - size_bytes <= slab_left_bytes_) {  // the old slab has more left than this one will
      return slabs_.back().data();
    }
    slab_next_ = slabs_.back().data();
    slab_left_bytes_ = slab_bytes;
  }
  slab_left_bytes_ -= size_bytes;
  return std::exchange(slab_next_, slab_next_ + size_bytes);
}

Arena::Block* Arena::new_record() {
  constexpr std::size_t kPiece = 1024;
  if (blocks_.empty() || blocks_.back().size() == kPiece) {
    blocks_.emplace_back().reserve(kPiece);
  }
  return &blocks_.back().emplace_back();
}

}  // namespace lockstep
