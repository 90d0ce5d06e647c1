#include "trainer/formats/gguf_writer.h"

#include <system_error>
#include <utility>

#include "base/error.h"
#include "data/text/gguf_reader.h"

namespace lockstep {
namespace {

constexpr std::uint64_t kAlignment = 32;
constexpr std::size_t kMaxNameBytes = 64;
constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint32_t kVersion = 3;

template <typename T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void append_text(std::string& bytes, std::string_view text) {
  append(bytes, static_cast<std::uint64_t>(text.size()));
  bytes += text;
}
void append_head(std::string& bytes, std::string_view key, GgufType type) {
  append_text(bytes, key);
  append(bytes, static_cast<std::uint32_t>(type));
}
void append_array(std::string& bytes, std::string_view key, GgufType type, std::size_t count) {
  append_head(bytes, key, GgufType::kArray);
  append(bytes, static_cast<std::uint32_t>(type));
  append(bytes, static_cast<std::uint64_t>(count));
}

std::uint64_t aligned(std::uint64_t value) { return (value + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void GgufMetadata::add(std::string_view key, std::string_view text) {
  append_head(bytes_, key, GgufType::kString);
  append_text(bytes_, text);
  ++count_;
}
void GgufMetadata::add(std::string_view key, std::uint32_t number) {
  append_head(bytes_, key, GgufType::kU32);
  append(bytes_, number);
  ++count_;
}
void GgufMetadata::add(std::string_view key, float number) {
  append_head(bytes_, key, GgufType::kF32);
  append(bytes_, number);
  ++count_;
}
void GgufMetadata::add(std::string_view key, bool flag) {
  append_head(bytes_, key, GgufType::kBool);
  append(bytes_, static_cast<std::uint8_t>(flag ? 1 : 0));
  ++count_;
}
void GgufMetadata::add(std::string_view key, const std::vector<std::string>& texts) {
  append_array(bytes_, key, GgufType::kString, texts.size());
  for (const std::string& text : texts) {
    append_text(bytes_, text);
  }
  ++count_;
}
void GgufMetadata::add(std::string_view key, const std::vector<std::int32_t>& numbers) {
  append_array(bytes_, key, GgufType::kI32, numbers.size());
  for (const std::int32_t number : numbers) {
    append(bytes_, number);
  }
  ++count_;
}

void GgufMetadata::add(std::string_view key, const std::vector<float>& numbers) {
  append_array(bytes_, key, GgufType::kF32, numbers.size());
  for (const float number : numbers) {
    append(bytes_, number);
  }
  ++count_;
}

std::int64_t GgufTensor::values() const {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) {
    product *= size;
  }
  return product;
}

GgufWriter::GgufWriter(std::filesystem::path path, const GgufMetadata& metadata, std::vector<GgufTensor> tensors)
    : path_(std::move(path)),
      partial_(path_.string() + ".partial"),
      tensors_(std::move(tensors)),
      file_(File::create(partial_.path)) {
  std::string head;
  append(head, kMagic);
  append(head, kVersion);
  append(head, static_cast<std::uint64_t>(tensors_.size()));
  append(head, metadata.count());
  head += metadata.bytes();
  std::uint64_t offset = 0;
  for (const GgufTensor& tensor : tensors_) {
    require(tensor.name.size() < kMaxNameBytes, "gguf: the name of tensor {} is longer than {} bytes", tensor.name,
            kMaxNameBytes - 1);
    require(tensor.shape.back() % block_values(tensor.type) == 0,
            "gguf: tensor {}: rows of {} are no whole blocks of {}", tensor.name, tensor.shape.back(),
            name_of(tensor.type));
    append_text(head, tensor.name);
    append(head, static_cast<std::uint32_t>(tensor.shape.size()));
    for (std::size_t i = tensor.shape.size(); i > 0; --i) {
      append(head, static_cast<std::uint64_t>(tensor.shape[i - 1]));  // the fastest first
    }
    append(head, static_cast<std::uint32_t>(tensor.type));
    append(head, offset);
    offsets_.push_back(offset);
    offset = aligned(offset + size_of(tensor.type, tensor.values()));
  }
  head.resize(aligned(head.size()), '\0');
  for (std::uint64_t& begin : offsets_) {
    begin += head.size();
  }
  size_ = head.size() + offset;
  file_.write(0, std::as_bytes(std::span(head)));
  file_.truncate(size_);
}

GgufWriter::Partial::~Partial() {
  if (!is_renamed) {
    std::error_code ignored;  // there is an error to report already
    std::filesystem::remove(path, ignored);
  }
}

void GgufWriter::write(std::size_t tensor, std::span<const float> values) {
  require(static_cast<std::int64_t>(values.size()) == tensors_[tensor].values(),
          "gguf: tensor {} has {} values, not {}", tensors_[tensor].name, tensors_[tensor].values(), values.size());
  bytes_.resize(size_of(tensors_[tensor].type, tensors_[tensor].values()));
  quantize(tensors_[tensor].type, values, bytes_);
  file_.write(offsets_[tensor], bytes_);
}

void GgufWriter::finish() {
  file_.sync();
  std::error_code error;
  std::filesystem::rename(partial_.path, path_, error);
  if (error) {
    fail(ErrorCode::kIo, "rename {} to {}: {}", partial_.path.string(), path_.string(), error.message());
  }
  partial_.is_renamed = true;
  const std::filesystem::path folder = path_.parent_path();
  sync_folder(folder.empty() ? "." : folder);
}

}  // namespace lockstep
