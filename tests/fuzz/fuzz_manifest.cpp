#include <cstddef>
#include <cstdint>

#include "tests/fuzz/checkpoint_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lockstep::try_manifest({reinterpret_cast<const char*>(data), size});
  return 0;
}
