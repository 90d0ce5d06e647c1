#include "ops/cpu/scratch.h"

#include <algorithm>

#include "base/buffer.h"

namespace lockstep::cpu {

std::byte* scratch_bytes(std::size_t size_bytes) {
  thread_local Buffer buffer;
  if (size_bytes > buffer.size_bytes()) {
    buffer = Buffer();
    buffer = Buffer::allocate(std::max(size_bytes, std::size_t{64} << 10));
  }
  return buffer.data();
}

}  // namespace lockstep::cpu
