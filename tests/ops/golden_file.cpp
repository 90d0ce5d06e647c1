#include "golden_file.h"

#include <fstream>
#include <stdexcept>

namespace lockstep::test {
namespace {

template <typename T>
T read(std::istream& file) {
  T value{};
  file.read(reinterpret_cast<char*>(&value), sizeof(value));
  return value;
}

Shape shape_of(const std::vector<std::int64_t>& sizes) {
  switch (sizes.size()) {
    case 1:
      return {sizes[0]};
    case 2:
      return {sizes[0], sizes[1]};
    default:
      throw std::runtime_error("golden file: a tensor that is neither a vector nor a matrix");
  }
}

}  // namespace

GoldenFile::GoldenFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  while (file.peek() != std::ifstream::traits_type::eof()) {
    std::string name(read<std::uint32_t>(file), '\0');
    file.read(name.data(), static_cast<std::streamsize>(name.size()));
    std::vector<std::int64_t> sizes(read<std::uint32_t>(file));
    for (std::int64_t& size : sizes) {
      size = read<std::uint32_t>(file);
    }
    GoldenTensor tensor{shape_of(sizes), {}};
    for (std::int64_t i = 0; i < tensor.shape.count(); ++i) {
      tensor.values.push_back(static_cast<double>(read<float>(file)));
    }
    if (!file) {
      throw std::runtime_error("golden file: " + path.string() + " ends in the middle of " + name);
    }
    tensors_[name] = std::move(tensor);
  }
  if (tensors_.empty()) {
    throw std::runtime_error("golden file: cannot read " + path.string());
  }
}

}  // namespace lockstep::test
