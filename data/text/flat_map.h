// FlatMap: integer keys to small values in one array (open addressing, linear probing). Faster and smaller than
// std::unordered_map where millions of look-ups decide the time. Nothing can be erased; all keys but 2^64 - 1 are
// allowed.
#pragma once

#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace lockstep {

template <typename Value>
class FlatMap {
 public:
  explicit FlatMap(std::size_t expected = 0) { resize(std::bit_ceil(expected * 2 + 16)); }

  [[nodiscard]] const Value* find(std::uint64_t key) const {
    const Slot& slot = slots_[slot_of(key)];
    return slot.key == key ? &slot.value : nullptr;
  }

  // The value of `key`; a new one starts as Value{}. References live until the next new key.
  Value& operator[](std::uint64_t key) {
    assert(key != kEmpty);
    std::size_t at = slot_of(key);
    if (slots_[at].key != key) {
      if ((size_ + 1) * 2 > slots_.size()) {
        grow();
        at = slot_of(key);
      }
      slots_[at].key = key;
      ++size_;
    }
    return slots_[at].value;
  }

  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  struct Slot {
    std::uint64_t key = kEmpty;
    Value value{};
  };

  // The slot that holds `key`, or the empty one where it would go.
  [[nodiscard]] std::size_t slot_of(std::uint64_t key) const {
    std::size_t at = static_cast<std::size_t>(((key ^ (key >> 32)) * 0x9E3779B97F4A7C15U) >> shift_);
    while (slots_[at].key != key && slots_[at].key != kEmpty) {
      at = (at + 1) & (slots_.size() - 1);
    }
    return at;
  }

  void resize(std::size_t slots) {
    slots_.assign(slots, Slot{});
    shift_ = 64 - std::countr_zero(slots);
  }

  void grow() {
    std::vector<Slot> old;
    old.swap(slots_);
    resize(old.size() * 2);
    for (Slot& slot : old) {
      if (slot.key != kEmpty) {
        slots_[slot_of(slot.key)] = std::move(slot);
      }
    }
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
  int shift_ = 64;
};

}  // namespace lockstep
