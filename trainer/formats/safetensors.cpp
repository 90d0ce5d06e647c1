#include "trainer/formats/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/half.h"
#include "trainer/flat_parameters.h"
#include "trainer/formats/strict_json.h"

namespace lockstep {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

struct TypeRow {
  SafetensorsType type;
  std::string_view name;
  std::size_t bits;
};
constexpr std::array<TypeRow, 22> kTypes = {{
    {SafetensorsType::kF64, "F64", 64},
    {SafetensorsType::kF32, "F32", 32},
    {SafetensorsType::kF16, "F16", 16},
    {SafetensorsType::kBF16, "BF16", 16},
    {SafetensorsType::kI64, "I64", 64},
    {SafetensorsType::kI32, "I32", 32},
    {SafetensorsType::kI16, "I16", 16},
    {SafetensorsType::kI8, "I8", 8},
    {SafetensorsType::kU64, "U64", 64},
    {SafetensorsType::kU32, "U32", 32},
    {SafetensorsType::kU16, "U16", 16},
    {SafetensorsType::kU8, "U8", 8},
    {SafetensorsType::kBool, "BOOL", 8},
    {SafetensorsType::kC64, "C64", 64},
    {SafetensorsType::kF8E5M2, "F8_E5M2", 8},
    {SafetensorsType::kF8E4M3, "F8_E4M3", 8},
    {SafetensorsType::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8},
    {SafetensorsType::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
    {SafetensorsType::kF8E8M0, "F8_E8M0", 8},
    {SafetensorsType::kF6E2M3, "F6_E2M3", 6},
    {SafetensorsType::kF6E3M2, "F6_E3M2", 6},
    {SafetensorsType::kF4, "F4", 4},
}};

const TypeRow& row_of(SafetensorsType type) { return kTypes[static_cast<std::size_t>(type)]; }

SafetensorsType parse_type(const nlohmann::json& value, const std::string& where) {
  const auto row = std::find_if(kTypes.begin(), kTypes.end(),
                                [&](const TypeRow& r) { return value.is_string() && value == std::string(r.name); });
  if (row == kTypes.end()) {
    if (!value.is_string()) {
      fail(ErrorCode::kCorrupt, "{}: dtype is not a string", where);
    }
    fail(ErrorCode::kUnsupported, "{}: dtype {} is not supported", where, quoted_name(value.get<std::string>()));
  }
  return row->type;
}

std::vector<std::int64_t> parse_shape(const nlohmann::json& value, const std::string& where) {
  constexpr std::size_t kMaxDimensions = 64;
  if (!value.is_array() || value.size() > kMaxDimensions) {
    fail(ErrorCode::kCorrupt, "{}: shape is not an array of at most {} sizes", where, kMaxDimensions);
  }
  std::vector<std::int64_t> shape;
  for (const auto& dim : value) {
    if (!dim.is_number_unsigned() || dim.get<std::uint64_t>() > (~std::uint64_t{0} >> 1)) {
      fail(ErrorCode::kCorrupt, "{}: shape holds something that is not a size", where);
    }
    shape.push_back(static_cast<std::int64_t>(dim.get<std::uint64_t>()));
  }
  return shape;
}

SafetensorsTensor parse_tensor(const std::string& name, const nlohmann::json& entry, std::uint64_t data_bytes,
                               const std::string& file) {
  const std::string where = fmt::format("{}: tensor {}", file, quoted_name(name));
  const bool complete = entry.is_object() && entry.size() == 3 && entry.contains("dtype") && entry.contains("shape") &&
                        entry.contains("data_offsets");
  if (!complete) {
    fail(ErrorCode::kCorrupt, "{}: expected exactly dtype, shape and data_offsets", where);
  }
  SafetensorsTensor tensor{name, parse_type(entry["dtype"], where), parse_shape(entry["shape"], where), 0, 0};
  const auto& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    fail(ErrorCode::kCorrupt, "{}: data_offsets are not two positions", where);
  }
  tensor.begin = offsets[0].get<std::uint64_t>();
  tensor.end = offsets[1].get<std::uint64_t>();
  if (tensor.begin > tensor.end || tensor.end > data_bytes) {
    fail(ErrorCode::kCorrupt, "{}: data_offsets [{}, {}] do not lie within the {} bytes of data", where, tensor.begin,
         tensor.end, data_bytes);
  }
  const auto count = count_of(tensor.shape);
  const std::uint64_t bytes = tensor.end - tensor.begin;
  const std::uint64_t bits = bits_of(tensor.type);
  // data_bytes are bytes of a file: their bits can be counted.
  if (!count || *count > data_bytes * 8 / bits || *count * bits != bytes * 8) {
    fail(ErrorCode::kCorrupt, "{}: holds {} bytes, but {} of shape {} does not", where, bytes, name_of(tensor.type),
         shape_text(tensor.shape));
  }
  return tensor;
}

std::map<std::string, std::string> parse_metadata(const nlohmann::json& entry, const std::string& file) {
  std::map<std::string, std::string> metadata;
  if (!entry.is_object()) {
    fail(ErrorCode::kCorrupt, "{}: __metadata__ is not an object", file);
  }
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) {
      fail(ErrorCode::kCorrupt, "{}: __metadata__ {} is not a string", file, quoted_name(key));
    }
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

void check_coverage(const std::vector<SafetensorsTensor>& tensors, std::uint64_t data_bytes, const std::string& file) {
  std::uint64_t position = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.begin != position) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} begins at byte {}, expected {}: there is {}", file,
           quoted_name(tensor.name), tensor.begin, position,
           tensor.begin > position ? "a hole before it" : "an overlap");
    }
    position = tensor.end;
  }
  if (position != data_bytes) {
    fail(ErrorCode::kCorrupt, "{}: the tensors end at byte {} of the data, expected {}", file, position, data_bytes);
  }
}

}  // namespace

std::string_view name_of(SafetensorsType type) { return row_of(type).name; }
std::size_t bits_of(SafetensorsType type) { return row_of(type).bits; }
std::size_t size_of(SafetensorsType type) {
  assert(bits_of(type) % 8 == 0);
  return bits_of(type) / 8;
}

DType to_dtype(SafetensorsType type) {
  switch (type) {
    case SafetensorsType::kF64:
      return DType::kF64;
    case SafetensorsType::kF32:
      return DType::kF32;
    case SafetensorsType::kF16:
      return DType::kF16;
    case SafetensorsType::kBF16:
      return DType::kBF16;
    case SafetensorsType::kI64:
      return DType::kI64;
    case SafetensorsType::kI32:
      return DType::kI32;
    case SafetensorsType::kU64:
      return DType::kU64;
    case SafetensorsType::kU32:
      return DType::kU32;
    case SafetensorsType::kU16:
      return DType::kU16;
    case SafetensorsType::kU8:
      return DType::kU8;
    case SafetensorsType::kI16:
    case SafetensorsType::kI8:
    case SafetensorsType::kBool:
    case SafetensorsType::kC64:
    case SafetensorsType::kF8E5M2:
    case SafetensorsType::kF8E4M3:
    case SafetensorsType::kF8E5M2Fnuz:
    case SafetensorsType::kF8E4M3Fnuz:
    case SafetensorsType::kF8E8M0:
    case SafetensorsType::kF6E2M3:
    case SafetensorsType::kF6E3M2:
    case SafetensorsType::kF4:
      break;
  }
  fail(ErrorCode::kUnsupported, "safetensors: {} has no counterpart among the element types here", name_of(type));
}

SafetensorsType to_safetensors(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return SafetensorsType::kF64;
    case DType::kF32:
      return SafetensorsType::kF32;
    case DType::kF16:
      return SafetensorsType::kF16;
    case DType::kBF16:
      return SafetensorsType::kBF16;
    case DType::kI64:
      return SafetensorsType::kI64;
    case DType::kI32:
      return SafetensorsType::kI32;
    case DType::kU64:
      return SafetensorsType::kU64;
    case DType::kU32:
      return SafetensorsType::kU32;
    case DType::kU16:
      return SafetensorsType::kU16;
    case DType::kU8:
      break;
  }
  return SafetensorsType::kU8;
}

SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes, const std::string& file) {
  if (json.empty() || json.front() != '{') {
    fail(ErrorCode::kCorrupt, "{}: the header does not begin with {{", file);
  }
  const nlohmann::json root = parse_strict_json(json, fmt::format("{}: header", file));
  SafetensorsHeader header;
  for (const auto& [name, entry] : root.items()) {
    if (name == "__metadata__") {
      header.metadata = parse_metadata(entry, file);
    } else {
      header.tensors.push_back(parse_tensor(name, entry, data_bytes, file));
    }
  }
  std::sort(header.tensors.begin(), header.tensors.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_coverage(header.tensors, data_bytes, file);
  return header;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(File::open_to_read(path)) {
  const std::string name = path.string();
  if (!std::filesystem::is_regular_file(path)) {
    fail(ErrorCode::kIo, "read {}: not a regular file", name);
  }
  const std::uint64_t file_bytes = file_.size();
  std::uint64_t header_bytes = 0;
  if (file_bytes < sizeof(header_bytes)) {
    fail(ErrorCode::kCorrupt, "{}: {} bytes are too few for a safetensors file", name, file_bytes);
  }
  file_.read_exactly(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
  if (header_bytes > kMaxSafetensorsHeaderBytes || header_bytes > file_bytes - sizeof(header_bytes)) {
    fail(ErrorCode::kCorrupt, "{}: a header of {} bytes is announced in a file of {} (at most {} are allowed)", name,
         header_bytes, file_bytes, kMaxSafetensorsHeaderBytes);
  }
  std::string json(header_bytes, '\0');
  file_.read_exactly(sizeof(header_bytes), std::as_writable_bytes(std::span(json)));
  const std::uint64_t data_begin = sizeof(header_bytes) + header_bytes;
  header_ = parse_safetensors_header(json, file_bytes - data_begin, name);
  header_.data_begin = data_begin;
  for (std::size_t i = 0; i < header_.tensors.size(); ++i) {
    index_.emplace(header_.tensors[i].name, i);
  }
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

const SafetensorsTensor& SafetensorsFile::get(std::string_view name) const {
  const SafetensorsTensor* tensor = find(name);
  if (tensor == nullptr) {
    fail(ErrorCode::kCorrupt, "{}: tensor {} is missing", path().string(), quoted_name(name));
  }
  return *tensor;
}

void SafetensorsFile::read(const SafetensorsTensor& tensor, std::uint64_t offset_bytes,
                           std::span<std::byte> bytes) const {
  const std::uint64_t tensor_bytes = tensor.end - tensor.begin;
  require(offset_bytes <= tensor_bytes && bytes.size() <= tensor_bytes - offset_bytes,
          "{}: tensor {}: bytes [{}, {}) were asked for, it has {}", path().string(), quoted_name(tensor.name),
          offset_bytes, offset_bytes + bytes.size(), tensor_bytes);
  file_.read_exactly(header_.data_begin + tensor.begin + offset_bytes, bytes);
}

void SafetensorsFile::read_f32(const SafetensorsTensor& tensor, std::uint64_t first, std::span<float> values) const {
  if (tensor.type == SafetensorsType::kF32) {
    read(tensor, first * sizeof(float), std::as_writable_bytes(values));
    return;
  }
  const bool convertible = tensor.type == SafetensorsType::kF16 || tensor.type == SafetensorsType::kBF16 ||
                           tensor.type == SafetensorsType::kF64;
  if (!convertible) {
    fail(ErrorCode::kUnsupported, "{}: tensor {}: {} cannot be read as f32, only F16, BF16, F32 and F64 can",
         path().string(), quoted_name(tensor.name), name_of(tensor.type));
  }
  constexpr std::size_t kPieceElements = 8192;
  std::vector<std::byte> piece(kPieceElements * size_of(tensor.type));
  for (std::size_t done = 0; done < values.size(); done += kPieceElements) {
    const auto out = values.subspan(done, std::min(kPieceElements, values.size() - done));
    const auto bytes = std::span(piece).first(out.size() * size_of(tensor.type));
    read(tensor, (first + done) * size_of(tensor.type), bytes);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (tensor.type == SafetensorsType::kF64) {
        double value = 0;
        std::memcpy(&value, &bytes[i * sizeof(value)], sizeof(value));
        out[i] = static_cast<float>(value);
      } else {
        std::uint16_t bits = 0;
        std::memcpy(&bits, &bytes[i * sizeof(bits)], sizeof(bits));
        out[i] = tensor.type == SafetensorsType::kF16 ? from_f16(bits)
                                                      : std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
      }
    }
  }
}

}  // namespace lockstep
