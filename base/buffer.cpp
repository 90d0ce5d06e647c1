#include "base/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace lockstep {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

// Memory comes straight from mmap: zeroed, returned to the system on release, and never mixed with the heap.
Buffer Buffer::allocate(std::size_t size_bytes) {
  if (size_bytes == 0) {
    return {};
  }
  const bool huge = size_bytes >= 2 * kHugePage;
  const std::size_t length = huge ? size_bytes + kHugePage : size_bytes;
  void* base = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    fail_errno(fmt::format("memory: allocating {} bytes", size_bytes));
  }
  void* data = base;
  if (huge) {
    const auto address = reinterpret_cast<std::uintptr_t>(base);
    data = reinterpret_cast<void*>((address + kHugePage - 1) / kHugePage * kHugePage);
    madvise(data, size_bytes, MADV_HUGEPAGE);
  }
  return {data, size_bytes, [base, length](void*) { munmap(base, length); }};
}

Buffer::Buffer(void* data, std::size_t size_bytes, std::function<void(void*)> release)
    : data_(data), size_bytes_(size_bytes), release_(std::move(release)) {}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      release_(std::exchange(other.release_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(release_, other.release_);
  return *this;
}

Buffer::~Buffer() {
  if (release_) {
    release_(data_);
  }
}

}  // namespace lockstep
