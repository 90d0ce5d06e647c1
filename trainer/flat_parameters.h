// Where each parameter lies in the flat buffers of master weights, gradients, moments and the narrow working copy.
//
// Parameters are laid out in the order in which their gradients become ready, each at a multiple of kAlignment
// elements; the gaps are padding, zero in every flat buffer. Tied weights are one parameter. The layout is pure: it
// owns no buffer and does not depend on the number of ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/buffer.h"

namespace lockstep {

// One tensor under the name that Hugging Face gives it: a contiguous sub-range of a parameter. A fused parameter (q, k
// and v in one matrix) has several, a plain one has one.
struct ParameterExport {
  std::string hf_name;
  std::vector<std::int64_t> shape;
  std::int64_t offset_elements = 0;  // from the parameter's first element
};

struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  bool decay = false;  // whether weight decay applies
  // In the order of their offsets, covering the parameter without gap or overlap. Empty: the parameter is exported
  // whole under its own name.
  std::vector<ParameterExport> exports;
  double rate = 1;  // times the learning rate
};

class ParameterLayout {
 public:
  static constexpr std::uint64_t kAlignment = 16;  // elements: 64 bytes of f32

  ParameterLayout() = default;
  // Throws Error(kUsage) when a name or an exported name repeats or is empty, a shape is negative or too large, or
  // exports do not cover their parameter exactly.
  explicit ParameterLayout(std::vector<ParameterSpec> specs);

  [[nodiscard]] const std::vector<ParameterSpec>& specs() const { return specs_; }
  [[nodiscard]] std::size_t size() const { return specs_.size(); }
  // The first element of parameter `index`: a multiple of kAlignment.
  [[nodiscard]] std::uint64_t offset(std::size_t index) const { return offsets_[index]; }
  // The elements of parameter `index`, without padding.
  [[nodiscard]] std::uint64_t count(std::size_t index) const { return counts_[index]; }
  [[nodiscard]] std::optional<std::size_t> find(std::string_view name) const;
  // The parameter that element `element` < total() belongs to, if only as padding.
  [[nodiscard]] std::size_t index_at(std::uint64_t element) const;

  // Elements of a flat buffer, padding included: a multiple of kAlignment.
  [[nodiscard]] std::uint64_t total() const { return total_; }
  // Elements of all parameters, without padding.
  [[nodiscard]] std::uint64_t parameters() const { return parameters_; }

  // Rank `rank`'s part when the flat buffer is cut into `world` ranges of nearly equal size, at multiples of `granule`,
  // itself one of kAlignment.
  [[nodiscard]] ElementRange shard(int rank, int world, std::uint64_t granule = kAlignment) const;

 private:
  std::vector<ParameterSpec> specs_;
  std::vector<std::uint64_t> offsets_;
  std::vector<std::uint64_t> counts_;
  std::unordered_map<std::string, std::size_t> index_;
  std::uint64_t total_ = 0;
  std::uint64_t parameters_ = 0;
};

// The product of `shape`; nullopt when a dimension is negative or the product does not fit 63 bits.
[[nodiscard]] std::optional<std::uint64_t> count_of(const std::vector<std::int64_t>& shape);

// "[768, 2304]"
[[nodiscard]] std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace lockstep
