// Reads the golden values that tests/golden/ops/make_golden.py wrote; the format is described there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "ops/shape.h"

namespace lockstep::test {

struct GoldenTensor {
  Shape shape;
  std::vector<double> values;
};

class GoldenFile {
 public:
  // Throws std::runtime_error when the file is missing or is not of the format.
  explicit GoldenFile(const std::filesystem::path& path);

  // Throws std::out_of_range for a name that the file does not hold.
  [[nodiscard]] const GoldenTensor& operator[](const std::string& name) const { return tensors_.at(name); }
  [[nodiscard]] bool has(const std::string& name) const { return tensors_.contains(name); }

 private:
  std::map<std::string, GoldenTensor> tensors_;
};

}  // namespace lockstep::test
