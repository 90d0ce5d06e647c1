// A GGUF file from anywhere: refused with one of the project's errors, or described; what is described can be read, and
// a model that it holds loads or is refused likewise.
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "trainer/formats/gguf_file.h"
#include "trainer/gguf_model.h"
#include "trainer/model/parameters.h"

namespace {

constexpr std::uint64_t kMostValues = std::uint64_t{1} << 22;

void read_all(const std::filesystem::path& path) {
  const lockstep::GgufFile file(path);
  std::uint64_t end = 0;
  for (const lockstep::GgufFileTensor& tensor : file.tensors()) {
    if (tensor.begin < end || tensor.begin + tensor.bytes > std::filesystem::file_size(path)) {
      std::abort();
    }
    end = tensor.begin + tensor.bytes;
    if (tensor.type.readable && tensor.count() < kMostValues) {
      std::vector<float> values(tensor.count());
      file.read(tensor, values);
    }
  }
}

void load_model(const std::filesystem::path& path) {
  const lockstep::GgufModel model(path);
  if (model.architecture().layers < 8) {
    model.check(lockstep::make_parameters(model.architecture()).layout);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fuzz-" + std::to_string(::getpid()) + ".gguf");
  try {
    lockstep::write_file_atomic(path, std::string_view(reinterpret_cast<const char*>(data), size));
    read_all(path);
    load_model(path);
  } catch (const lockstep::Error&) {
    return 0;
  }
  return 0;
}
