#include "trainer/flat_parameters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cassert>
#include <unordered_set>
#include <utility>

#include "base/error.h"

namespace lockstep {
namespace {

// Far above any model, far below where adding offsets could overflow.
constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 48;

std::uint64_t round_up(std::uint64_t n) {
  return (n + ParameterLayout::kAlignment - 1) / ParameterLayout::kAlignment * ParameterLayout::kAlignment;
}

void complete_exports(ParameterSpec& spec, std::uint64_t count) {
  if (spec.exports.empty()) {
    spec.exports.push_back({spec.name, spec.shape, 0});
  }
  std::uint64_t expected = 0;
  for (const ParameterExport& part : spec.exports) {
    const auto part_count = count_of(part.shape);
    require(part_count.has_value(), "layout: parameter {}: export {} has the impossible shape {}", spec.name,
            part.hf_name, shape_text(part.shape));
    require(part.offset_elements >= 0 && static_cast<std::uint64_t>(part.offset_elements) == expected,
            "layout: parameter {}: export {} begins at element {}, expected {}", spec.name, part.hf_name,
            part.offset_elements, expected);
    require(*part_count <= count - expected,
            "layout: parameter {}: export {} of shape {} reaches past the parameter's {} elements", spec.name,
            part.hf_name, shape_text(part.shape), count);
    expected += *part_count;
  }
  require(expected == count, "layout: parameter {}: its exports cover {} of {} elements", spec.name, expected, count);
}

}  // namespace

ParameterLayout::ParameterLayout(std::vector<ParameterSpec> specs) : specs_(std::move(specs)) {
  offsets_.reserve(specs_.size());
  counts_.reserve(specs_.size());
  std::unordered_set<std::string> hf_names;
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    ParameterSpec& spec = specs_[i];
    require(!spec.name.empty(), "layout: parameter {} has no name", i);
    require(index_.emplace(spec.name, i).second, "layout: parameter {} stands twice", spec.name);
    const auto count = count_of(spec.shape);
    require(count && *count <= kMaxElements && total_ <= kMaxElements,
            "layout: parameter {}: the shape {} is impossible", spec.name, shape_text(spec.shape));
    complete_exports(spec, *count);
    for (const ParameterExport& part : spec.exports) {
      require(!part.hf_name.empty(), "layout: parameter {}: an export has no name", spec.name);
      require(hf_names.insert(part.hf_name).second, "layout: parameter {}: export {} stands twice", spec.name,
              part.hf_name);
    }
    offsets_.push_back(total_);
    counts_.push_back(*count);
    parameters_ += *count;
    total_ += round_up(*count);
  }
}

std::optional<std::size_t> ParameterLayout::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? std::nullopt : std::optional(found->second);
}

std::size_t ParameterLayout::index_at(std::uint64_t element) const {
  assert(element < total_);
  // The last parameter that begins at or before `element`: empty ones that begin at the same place come before it.
  return static_cast<std::size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), element) - offsets_.begin()) - 1;
}

ElementRange ParameterLayout::shard(int rank, int world, std::uint64_t granule) const {
  assert(rank >= 0 && rank < world && granule % kAlignment == 0);
  const std::uint64_t blocks = (total_ + granule - 1) / granule;
  const auto border = [&](std::uint64_t r) {
    const auto n = static_cast<std::uint64_t>(world);
    // blocks * r / n, without the product: it need not fit.
    return std::min(total_, (blocks / n * r + blocks % n * r / n) * granule);
  };
  return {border(static_cast<std::uint64_t>(rank)), border(static_cast<std::uint64_t>(rank) + 1)};
}

std::optional<std::uint64_t> count_of(const std::vector<std::int64_t>& shape) {
  std::uint64_t count = 1;
  bool has_zero = false;
  for (const std::int64_t dim : shape) {
    if (dim < 0) {
      return std::nullopt;
    }
    has_zero = has_zero || dim == 0;
  }
  if (has_zero) {
    return 0;
  }
  for (const std::int64_t dim : shape) {
    const auto d = static_cast<std::uint64_t>(dim);
    if (count > (~std::uint64_t{0} >> 1) / d) {
      return std::nullopt;
    }
    count *= d;
  }
  return count;
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

}  // namespace lockstep
