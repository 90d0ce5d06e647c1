// Memory that a server holds for a worker, counted, so that a worker that is far ahead of the others can be made to
// wait. On one thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#include "comm/control/asio.h"

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
  std::size_t held_bytes_ = 0;
  boost::asio::steady_timer room_;  // cancelled when some is freed
};

class Block {
 public:
  Block(std::size_t size_bytes, std::shared_ptr<Account> account)
      : bytes_(new std::byte[size_bytes]), size_bytes_(size_bytes), account_(std::move(account)) {
    account_->held_bytes_ += size_bytes_;
  }
  ~Block() {
    account_->held_bytes_ -= size_bytes_;
    account_->room_.cancel();
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // Another one, on the same account.
  [[nodiscard]] std::shared_ptr<Block> another(std::size_t size_bytes) const {
    return std::make_shared<Block>(size_bytes, account_);
  }
  [[nodiscard]] std::span<std::byte> bytes() const { return {bytes_.get(), size_bytes_}; }

 private:
  std::unique_ptr<std::byte[]> bytes_;
  std::size_t size_bytes_;
  std::shared_ptr<Account> account_;
};

}  // namespace lockstep::server
