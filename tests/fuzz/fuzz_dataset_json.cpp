// Any bytes as dataset.json: an Error, or something that is written and read back as the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "data/dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  lockstep::DatasetInfo info;
  try {
    info = lockstep::parse_dataset_json(std::string_view(reinterpret_cast<const char*>(data), size), "fuzzed");
  } catch (const lockstep::Error&) {
    return 0;
  }
  if (lockstep::parse_dataset_json(lockstep::to_dataset_json(info), "written") != info) {
    std::abort();
  }
  return 0;
}
