#include "data/shard_writer.h"

#include <algorithm>
#include <cassert>

namespace lockstep {

ShardWriter::ShardWriter(const std::filesystem::path& path, DType dtype, DatasetKind kind)
    : file_(Hdf5File::create(path)), dtype_(dtype), kind_(kind) {
  assert(dtype == DType::kU16 || dtype == DType::kU32);
}

void ShardWriter::begin_document() {
  if (offset_buffer_.size() == kOffsetChunk) {
    write_offsets();
  }
  offset_buffer_.push_back(tokens_);
  ++documents_;
}

void ShardWriter::append_chat(std::span<const std::uint32_t> tokens, std::span<const std::uint8_t> trained) {
  assert(has_conversations(kind_) && tokens.size() == trained.size());
  begin_document();
  append(tokens);
  const auto targets = static_cast<std::uint32_t>(std::count(trained.begin(), trained.end(), std::uint8_t{1}));
  target_buffer_.push_back(targets);
  targets_ += targets;
  trained_buffer_.insert(trained_buffer_.end(), trained.begin(), trained.end());
  if (trained_buffer_.size() >= kTokenChunk) {
    write_trained();
  }
}

void ShardWriter::write_trained() {
  if (!has_trained_array_) {
    file_.create_array("trained", DType::kU8, std::clamp<std::uint64_t>(trained_buffer_.size(), 1, kTokenChunk));
    has_trained_array_ = true;
  }
  file_.append("trained", trained_buffer_);
  trained_buffer_.clear();
}

void ShardWriter::append(std::span<const std::uint32_t> tokens) {
  tokens_ += tokens.size();
  while (!tokens.empty()) {
    const std::size_t count = std::min<std::size_t>(tokens.size(), kTokenChunk - token_buffer_.size());
    token_buffer_.insert(token_buffer_.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
    tokens = tokens.subspan(count);
    if (token_buffer_.size() == kTokenChunk) {
      write_tokens();
    }
  }
}

// An array is made when the first of it is written: then it is known whether it fills a chunk.
void ShardWriter::write_tokens() {
  if (!has_tokens_array_) {
    file_.create_array("tokens", dtype_, std::max<std::uint64_t>(token_buffer_.size(), 1));
    has_tokens_array_ = true;
  }
  if (dtype_ == DType::kU16) {
    narrow_buffer_.resize(token_buffer_.size());
    std::transform(token_buffer_.begin(), token_buffer_.end(), narrow_buffer_.begin(), [](std::uint32_t id) {
      assert(id <= 0xffff);
      return static_cast<std::uint16_t>(id);
    });
    file_.append("tokens", narrow_buffer_);
  } else {
    file_.append("tokens", token_buffer_);
  }
  token_buffer_.clear();
}

void ShardWriter::write_offsets() {
  if (!has_offsets_array_) {
    const std::uint64_t chunk = std::max<std::uint64_t>(offset_buffer_.size(), 1);
    file_.create_array("document_offsets", DType::kU64, chunk);
    if (has_conversations(kind_)) {
      file_.create_array("document_targets", DType::kU32, chunk);
    }
    has_offsets_array_ = true;
  }
  file_.append("document_offsets", offset_buffer_);
  offset_buffer_.clear();
  if (has_conversations(kind_)) {
    file_.append("document_targets", target_buffer_);
    target_buffer_.clear();
  }
}

void ShardWriter::close() {
  if (!token_buffer_.empty() || !has_tokens_array_) {
    write_tokens();
  }
  if (!offset_buffer_.empty() || !has_offsets_array_) {
    write_offsets();
  }
  if (has_conversations(kind_) && (!trained_buffer_.empty() || !has_trained_array_)) {
    write_trained();
  }
  file_.close();
}

}  // namespace lockstep
