// Memory that a server holds for a worker, counted, so that a worker that is far ahead of the others can be made to
// wait. Some of what is given back stays for the next pieces: fresh memory costs a page fault every 4 KiB. On one
// thread.
#pragma once

#include <array>
#include <bit>
#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "comm/control/asio.h"
#include "comm/server/protocol.h"

namespace lockstep::server {

// What is held of one worker's.
class Account {
 public:
  explicit Account(boost::asio::io_context& io) : room_(io) {}

  // True when less than `limit_bytes` are held, false when nothing has been freed for `patience`. For one coroutine at
  // a time.
  [[nodiscard]] boost::asio::awaitable<bool> wait_for_room(std::size_t limit_bytes,
                                                           std::chrono::milliseconds patience) {
    while (held_bytes_ >= limit_bytes) {
      boost::system::error_code ended;
      room_.expires_after(patience);
      co_await room_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ended));
      if (!ended) {
        co_return false;
      }
    }
    co_return true;
  }

 private:
  friend class Block;
  using Memory = std::unique_ptr<std::byte[]>;
  // Shorter ones are the heap's business.
  static constexpr std::size_t kLeastKept = std::size_t{64} << 10;
  static constexpr std::size_t kMostKept = kMaxPayloadBytes;
  static constexpr std::size_t kKeptBytes = std::size_t{16} << 20;

  [[nodiscard]] static bool is_kept(std::size_t size_bytes) {
    return size_bytes >= kLeastKept && size_bytes <= kMostKept;
  }
  // By powers of two.
  [[nodiscard]] std::vector<Memory>& kept(std::size_t size_bytes) {
    return kept_[static_cast<std::size_t>(std::bit_width(size_bytes - 1) - std::bit_width(kLeastKept - 1))];
  }
  [[nodiscard]] Memory take(std::size_t size_bytes) {
    if (!is_kept(size_bytes)) {
      return Memory(new std::byte[size_bytes]);
    }
    std::vector<Memory>& free = kept(size_bytes);
    if (free.empty()) {
      return Memory(new std::byte[std::bit_ceil(size_bytes)]);
    }
    Memory memory = std::move(free.back());
    free.pop_back();
    kept_bytes_ -= std::bit_ceil(size_bytes);
    return memory;
  }
  void give_back(Memory memory, std::size_t size_bytes) {
    if (is_kept(size_bytes) && kept_bytes_ + std::bit_ceil(size_bytes) <= kKeptBytes) {
      kept(size_bytes).push_back(std::move(memory));
      kept_bytes_ += std::bit_ceil(size_bytes);
    }
  }

  std::array<std::vector<Memory>, std::bit_width(kMostKept) - std::bit_width(kLeastKept) + 1> kept_;
  std::size_t kept_bytes_ = 0;
  std::size_t held_bytes_ = 0;
  boost::asio::steady_timer room_;  // cancelled when some is freed
};

class Block {
 public:
  Block(std::size_t size_bytes, std::shared_ptr<Account> account)
      : account_(std::move(account)), memory_(account_->take(size_bytes)), bytes_(memory_.get(), size_bytes) {
    account_->held_bytes_ += bytes_.size();
  }
  // Bytes in memory that the worker shares, of which `owner` is kept: what is held here is that they are there.
  Block(std::span<std::byte> bytes, std::shared_ptr<const void> owner, std::shared_ptr<Account> account)
      : account_(std::move(account)), owner_(std::move(owner)), bytes_(bytes) {
    account_->held_bytes_ += kSharedCost;
  }
  ~Block() {
    account_->held_bytes_ -= memory_ ? bytes_.size() : kSharedCost;
    account_->room_.cancel();
    if (memory_) {
      account_->give_back(std::move(memory_), bytes_.size());
    }
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Another one, on the same account.
  [[nodiscard]] std::shared_ptr<Block> another(std::size_t size_bytes) const {
    return std::make_shared<Block>(size_bytes, account_);
  }
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
  // Whether the worker may change them once it has its sum.
  [[nodiscard]] bool is_shared() const { return memory_ == nullptr; }

 private:
  // Of a piece and all that belongs to it.
  static constexpr std::size_t kSharedCost = 1024;

  std::shared_ptr<Account> account_;
  std::unique_ptr<std::byte[]> memory_;
  std::shared_ptr<const void> owner_;
  std::span<std::byte> bytes_;
};

}  // namespace lockstep::server
