// Memory of a worker that a server on the same machine uses in place: contributions are read where they lie, and sums
// written there, so that only the frames that say so go over the connection.
//
// The memory is a memfd that cannot shrink, so that the server never touches a page that is gone. The server opens it
// through the worker's /proc entry, for which both have to be one user's, and only when it has the name of such a
// memory. That it is the worker's, and not another process's of that number, the 32 random bytes show that it begins
// with and that come over the authenticated connection. What a server maps stays until it drops it, also when the
// worker is gone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "comm/server/protocol.h"

namespace lockstep::server {

// Shared memory of this process. Safe to use from several threads.
class OwnMemory {
 public:
  // Zeroed, each page of it there. Null when the system has none to give.
  [[nodiscard]] static std::shared_ptr<OwnMemory> create(std::size_t size_bytes);
  ~OwnMemory();
  OwnMemory(const OwnMemory&) = delete;
  OwnMemory& operator=(const OwnMemory&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }  // begins on a page
  // What a server has to know of it.
  [[nodiscard]] const SharedMemory& description() const { return description_; }

 private:
  OwnMemory(int descriptor, void* mapping, std::size_t mapped_bytes, std::size_t size_bytes);

  const int descriptor_;
  void* const mapping_;
  const std::size_t mapped_bytes_;
  const std::span<std::byte> bytes_;
  SharedMemory description_;
};

// Another process's.
class OthersMemory {
 public:
  // Throws Error(kIo) when it cannot be had, or is not what is described. `index`, a small number: memories of
  // different ones do not get in each other's way in the processor's caches when they are read side by side.
  OthersMemory(const SharedMemory& description, std::size_t index);
  ~OthersMemory();
  OthersMemory(const OthersMemory&) = delete;
  OthersMemory& operator=(const OthersMemory&) = delete;

  // `size_bytes` from byte `offset` on. Throws Error(kCorrupt) when they are not all within, or not at a multiple of
  // `alignment`.
  [[nodiscard]] std::span<std::byte> part(std::uint64_t offset, std::size_t size_bytes, std::size_t alignment) const;

 private:
  void* reserved_ = nullptr;
  std::size_t reserved_bytes_ = 0;
  std::span<std::byte> bytes_;
};

}  // namespace lockstep::server
