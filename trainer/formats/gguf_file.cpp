#include "trainer/formats/gguf_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <limits>

#include "base/error.h"
#include "trainer/flat_parameters.h"
#include "trainer/formats/strict_json.h"

namespace lockstep {
namespace {

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint64_t kMaxKeys = std::uint64_t{1} << 16;
constexpr std::size_t kMaxKeyBytes = 65'535;
constexpr std::size_t kMaxTextBytes = std::size_t{16} << 20;  // a chat template is the longest text
constexpr std::size_t kMaxNameBytes = 64;
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 20;
constexpr std::uint64_t kPieceBytes = std::uint64_t{1} << 20;  // of a tensor, dequantised at a time

// The types of ggml.h that files have; Q8_1 and Q8_K are for products only.
constexpr std::array kTypes = {
    GgufTensorType{0, "F32", 1, 4, GgmlType::kF32},
    GgufTensorType{1, "F16", 1, 2, GgmlType::kF16},
    GgufTensorType{2, "Q4_0", 32, 18, GgmlType::kQ4_0},
    GgufTensorType{3, "Q4_1", 32, 20, {}},
    GgufTensorType{6, "Q5_0", 32, 22, GgmlType::kQ5_0},
    GgufTensorType{7, "Q5_1", 32, 24, {}},
    GgufTensorType{8, "Q8_0", 32, 34, GgmlType::kQ8_0},
    GgufTensorType{10, "Q2_K", 256, 84, {}},
    GgufTensorType{11, "Q3_K", 256, 110, {}},
    GgufTensorType{12, "Q4_K", 256, 144, GgmlType::kQ4_K},
    GgufTensorType{13, "Q5_K", 256, 176, {}},
    GgufTensorType{14, "Q6_K", 256, 210, GgmlType::kQ6_K},
    GgufTensorType{16, "IQ2_XXS", 256, 66, {}},
    GgufTensorType{17, "IQ2_XS", 256, 74, {}},
    GgufTensorType{18, "IQ3_XXS", 256, 98, {}},
    GgufTensorType{19, "IQ1_S", 256, 50, {}},
    GgufTensorType{20, "IQ4_NL", 32, 18, {}},
    GgufTensorType{21, "IQ3_S", 256, 110, {}},
    GgufTensorType{22, "IQ2_S", 256, 82, {}},
    GgufTensorType{23, "IQ4_XS", 256, 136, {}},
    GgufTensorType{24, "I8", 1, 1, {}},
    GgufTensorType{25, "I16", 1, 2, {}},
    GgufTensorType{26, "I32", 1, 4, {}},
    GgufTensorType{27, "I64", 1, 8, {}},
    GgufTensorType{28, "F64", 1, 8, {}},
    GgufTensorType{29, "IQ1_M", 256, 56, {}},
    GgufTensorType{30, "BF16", 1, 2, GgmlType::kBF16},
    GgufTensorType{34, "TQ1_0", 256, 54, {}},
    GgufTensorType{35, "TQ2_0", 256, 66, {}},
    GgufTensorType{39, "MXFP4", 32, 17, {}},
};

GgufValue read_value(GgufReader& reader, const std::string& key) {
  switch (reader.type(key)) {
    case GgufType::kU8:
      return std::uint64_t{reader.u8(key)};
    case GgufType::kU16:
      return std::uint64_t{reader.u16(key)};
    case GgufType::kU32:
      return std::uint64_t{reader.u32(key)};
    case GgufType::kU64:
      return reader.u64(key);
    case GgufType::kI8:
      return std::int64_t{static_cast<std::int8_t>(reader.u8(key))};
    case GgufType::kI16:
      return std::int64_t{static_cast<std::int16_t>(reader.u16(key))};
    case GgufType::kI32:
      return std::int64_t{static_cast<std::int32_t>(reader.u32(key))};
    case GgufType::kI64:
      return static_cast<std::int64_t>(reader.u64(key));
    case GgufType::kF32:
      return static_cast<double>(std::bit_cast<float>(reader.u32(key)));
    case GgufType::kF64:
      return std::bit_cast<double>(reader.u64(key));
    case GgufType::kBool:
      return reader.boolean(key);
    case GgufType::kString:
      return reader.string(key, kMaxTextBytes);
    case GgufType::kArray: {
      const GgufReader::Array head = reader.array(key);
      reader.skip_elements(head, key);
      return head;
    }
  }
  return {};  // type() gives no other
}

// The sizes as the file has them, the fastest first, in the order of shapes.
std::vector<std::int64_t> read_shape(GgufReader& reader, const std::string& tensor) {
  const std::uint32_t dimensions = reader.u32("the number of dimensions");
  if (dimensions == 0 || dimensions > kMaxDimensions) {
    fail(ErrorCode::kCorrupt, "{}: tensor {} has {} dimensions, expected 1 to {}", reader.name(), quoted_name(tensor),
         dimensions, kMaxDimensions);
  }
  std::vector<std::int64_t> shape(dimensions);
  for (auto size = shape.rbegin(); size != shape.rend(); ++size) {
    const std::uint64_t found = reader.u64("a dimension");
    if (found == 0 || found > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} has a dimension of {}", reader.name(), quoted_name(tensor), found);
    }
    *size = static_cast<std::int64_t>(found);
  }
  return shape;
}

GgufTensorType read_type(GgufReader& reader, const std::string& tensor) {
  const std::uint32_t number = reader.u32("a tensor's type");
  const auto* const found =
      std::ranges::find_if(kTypes, [&](const GgufTensorType& type) { return type.number == number; });
  if (found == kTypes.end()) {
    fail(ErrorCode::kUnsupported, "{}: tensor {} has the type {}, which is not known", reader.name(),
         quoted_name(tensor), number);
  }
  return *found;
}

// Throws Error(kCorrupt) for what no file could hold.
std::uint64_t bytes_of(const GgufFileTensor& tensor, const std::string& file) {
  const auto count = count_of(tensor.shape);
  const auto per_block = static_cast<std::uint64_t>(tensor.type.block_values);
  if (!count || *count / per_block > std::numeric_limits<std::int64_t>::max() / tensor.type.block_bytes) {
    fail(ErrorCode::kCorrupt, "{}: tensor {} has shape {}, which no file can hold", file, quoted_name(tensor.name),
         shape_text(tensor.shape));
  }
  if (tensor.shape.back() % tensor.type.block_values != 0) {
    fail(ErrorCode::kCorrupt, "{}: tensor {} has rows of {} values, which are no whole blocks of {}", file,
         quoted_name(tensor.name), tensor.shape.back(), tensor.type.name);
  }
  return *count / per_block * tensor.type.block_bytes;
}

}  // namespace

bool is_gguf_file(const std::filesystem::path& path) {
  std::array<char, 4> head{};
  const std::size_t found = File::open_to_read(path).read_some(0, std::as_writable_bytes(std::span(head)));
  return std::string_view(head.data(), found) == "GGUF";
}

GgufFile::GgufFile(const std::filesystem::path& path) : file_(File::open_to_read(path)) {
  GgufReader reader([this](std::uint64_t offset, std::span<std::byte> bytes) { return file_.read_some(offset, bytes); },
                    file_.size(), path.string());
  if (reader.u32("the magic") != kMagic) {
    fail(ErrorCode::kCorrupt, "{}: not a GGUF file: it does not begin with GGUF", reader.name());
  }
  version_ = reader.u32("the version");
  if (version_ != 2 && version_ != 3) {
    fail(ErrorCode::kUnsupported, "{}: GGUF version {}, expected 2 or 3 (little-endian)", reader.name(), version_);
  }
  const std::uint64_t tensors = reader.u64("the number of tensors");
  read_metadata(reader, reader.u64("the number of keys"));
  read_tensors(reader, tensors);
  check_places((reader.position() + alignment_ - 1) / alignment_ * alignment_);
}

void GgufFile::read_metadata(GgufReader& reader, std::uint64_t keys) {
  if (keys > kMaxKeys) {
    fail(ErrorCode::kCorrupt, "{}: {} keys, expected at most {}", reader.name(), keys, kMaxKeys);
  }
  for (std::uint64_t i = 0; i < keys; ++i) {
    const std::string key = reader.string(fmt::format("key {}", i), kMaxKeyBytes);
    if (!metadata_.emplace(key, read_value(reader, key)).second) {
      fail(ErrorCode::kCorrupt, "{}: the key {} is there twice", reader.name(), quoted_name(key));
    }
  }
  const std::int64_t alignment = number("general.alignment").value_or(32);
  if (alignment <= 0 || static_cast<std::uint64_t>(alignment) > kMaxAlignment ||
      !std::has_single_bit(static_cast<std::uint64_t>(alignment))) {
    fail(ErrorCode::kCorrupt, "{}: general.alignment is {}, expected a power of two, at most {}", reader.name(),
         alignment, kMaxAlignment);
  }
  alignment_ = static_cast<std::uint64_t>(alignment);
}

void GgufFile::read_tensors(GgufReader& reader, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) {
    GgufFileTensor tensor;
    tensor.name = reader.string(fmt::format("the name of tensor {}", i), kMaxNameBytes);
    tensor.shape = read_shape(reader, tensor.name);
    tensor.type = read_type(reader, tensor.name);
    tensor.begin = reader.u64("a tensor's offset");
    tensor.bytes = bytes_of(tensor, reader.name());
    tensors_.push_back(std::move(tensor));
  }
}

// Turns offsets among the tensors into such in the file.
void GgufFile::check_places(std::uint64_t data_begin) {
  const std::string name = path().string();
  const std::uint64_t size = file_.size();
  for (GgufFileTensor& tensor : tensors_) {
    if (tensor.begin % alignment_ != 0) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} begins at the offset {}, which is no multiple of {}", name,
           quoted_name(tensor.name), tensor.begin, alignment_);
    }
    if (data_begin > size || tensor.begin > size - data_begin || tensor.bytes > size - data_begin - tensor.begin) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} takes {} bytes from {} + {} on, but the file has only {}", name,
           quoted_name(tensor.name), tensor.bytes, data_begin, tensor.begin, size);
    }
    tensor.begin += data_begin;
  }
  std::ranges::sort(tensors_, {}, &GgufFileTensor::begin);
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!index_.emplace(tensors_[i].name, i).second) {
      fail(ErrorCode::kCorrupt, "{}: tensor {} is there twice", name, quoted_name(tensors_[i].name));
    }
    if (i > 0 && tensors_[i - 1].begin + tensors_[i - 1].bytes > tensors_[i].begin) {
      fail(ErrorCode::kCorrupt, "{}: the tensors {} and {} overlap", name, quoted_name(tensors_[i - 1].name),
           quoted_name(tensors_[i].name));
    }
  }
}

const GgufValue* GgufFile::value(std::string_view key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

std::optional<std::int64_t> GgufFile::number(std::string_view key) const {
  const GgufValue* const found = value(key);
  if (found == nullptr) {
    return {};
  }
  if (const auto* const positive = std::get_if<std::uint64_t>(found);
      positive != nullptr && *positive <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return static_cast<std::int64_t>(*positive);
  }
  if (const auto* const integer = std::get_if<std::int64_t>(found)) {
    return *integer;
  }
  fail(ErrorCode::kUnsupported, "{}: {} is not an integer of 63 bits", path().string(), key);
}

std::optional<double> GgufFile::real(std::string_view key) const {
  const GgufValue* const found = value(key);
  if (found != nullptr && std::holds_alternative<double>(*found)) {
    return std::get<double>(*found);
  }
  const auto integer = number(key);
  return integer ? std::optional(static_cast<double>(*integer)) : std::nullopt;
}

std::optional<std::string> GgufFile::text(std::string_view key) const {
  const GgufValue* const found = value(key);
  if (found == nullptr) {
    return {};
  }
  if (const auto* const string = std::get_if<std::string>(found)) {
    return *string;
  }
  fail(ErrorCode::kUnsupported, "{}: {} is not a text", path().string(), key);
}

std::optional<GgufReader::Array> GgufFile::array(std::string_view key) const {
  const GgufValue* const found = value(key);
  if (found == nullptr) {
    return {};
  }
  if (const auto* const head = std::get_if<GgufReader::Array>(found)) {
    return *head;
  }
  fail(ErrorCode::kUnsupported, "{}: {} is not an array", path().string(), key);
}

const GgufFileTensor* GgufFile::find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

void GgufFile::read(const GgufFileTensor& tensor, std::span<float> values) const {
  assert(values.size() == tensor.count());
  if (!tensor.type.readable) {
    fail(ErrorCode::kUnsupported, "{}: tensor {} has the type {}, whose values cannot be read here", path().string(),
         quoted_name(tensor.name), tensor.type.name);
  }
  const std::uint64_t blocks = tensor.bytes / tensor.type.block_bytes;
  const std::uint64_t at_once = kPieceBytes / tensor.type.block_bytes;
  std::vector<std::byte> bytes(std::min(blocks, at_once) * tensor.type.block_bytes);
  for (std::uint64_t first = 0; first < blocks; first += at_once) {
    const std::uint64_t count = std::min(at_once, blocks - first);
    const auto part = std::span(bytes).first(count * tensor.type.block_bytes);
    file_.read_exactly(tensor.begin + first * tensor.type.block_bytes, part);
    const auto per_block = static_cast<std::uint64_t>(tensor.type.block_values);
    dequantize(*tensor.type.readable, part, values.subspan(first * per_block, count * per_block));
  }
}

}  // namespace lockstep
