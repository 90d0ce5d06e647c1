// The step arena: memory for activations and their gradients, taken from the system in the first step and reused in all
// that follow.
//
// Blocks are reference-counted and go back to a free list of their size class when the last reference goes. A training
// step asks for the same sizes in the same order each time, so from the second step on nothing is taken from the system
// and no page is touched for the first time.
//
// One thread uses an Arena; it outlives its blocks. Under AddressSanitizer only what a block was asked for can be
// touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "base/buffer.h"

namespace lockstep {

class Arena {
 public:
  struct Block {
    Arena* arena = nullptr;  // null: memory that somebody else owns
    std::byte* data = nullptr;
    std::size_t size_bytes = 0;  // of the class
    std::uint32_t size_class = 0;
    std::uint32_t references = 0;
  };

  // `allocate` is where memory comes from: Backend::allocate() for a device's.
  explicit Arena(std::function<Buffer(std::size_t size_bytes)> allocate = Buffer::allocate)
      : allocate_(std::move(allocate)) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Uninitialised memory, aligned to 64 bytes, with one reference. Throws what its source does when that has none left.
  [[nodiscard]] Block* allocate(std::size_t size_bytes);
  void release(Block* block);

  // Taken from the system so far; does not grow in a steady step.
  [[nodiscard]] std::size_t reserved_bytes() const { return reserved_bytes_; }

 private:
  std::function<Buffer(std::size_t)> allocate_;
  std::vector<std::vector<Block*>> free_;  // by size class
  std::vector<Buffer> slabs_;
  std::vector<std::vector<Block>> blocks_;  // the Block records, in pieces that never move
  std::size_t slab_left_bytes_ = 0;
  std::byte* slab_next_ = nullptr;
  std::size_t reserved_bytes_ = 0;

  std::byte* take_from_system(std::size_t size_bytes);
  Block* new_record();
};

// A counted reference to a block.
class StorageRef {
 public:
  StorageRef() = default;
  explicit StorageRef(Arena::Block* block) : block_(block) {}
  StorageRef(const StorageRef& other) : block_(other.block_) {
    if (block_ != nullptr) {
      ++block_->references;
    }
  }
  StorageRef(StorageRef&& other) noexcept : block_(std::exchange(other.block_, nullptr)) {}
  StorageRef& operator=(StorageRef other) noexcept {
    std::swap(block_, other.block_);
    return *this;
  }
  ~StorageRef() {
    if (block_ != nullptr && --block_->references == 0) {
      block_->arena->release(block_);
    }
  }
  [[nodiscard]] std::byte* data() const { return block_ == nullptr ? nullptr : block_->data; }
  [[nodiscard]] bool is_unique() const { return block_ != nullptr && block_->references == 1; }

 private:
  Arena::Block* block_ = nullptr;
};

}  // namespace lockstep
