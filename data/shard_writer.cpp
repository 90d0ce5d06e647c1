#include "data/shard_writer.h"

#include <algorithm>
#include <cassert>

namespace lockstep {

ShardWriter::ShardWriter(const std::filesystem::path& path, DType dtype)
    : file_(Hdf5File::create(path)), dtype_(dtype) {
  assert(dtype == DType::kU16 || dtype == DType::kU32);
}

void ShardWriter::begin_document() {
  offset_buffer_.push_back(tokens_);
  ++documents_;
  if (offset_buffer_.size() == kOffsetChunk) {
    write_offsets();
  }
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
    file_.create_array("document_offsets", DType::kU64, std::max<std::uint64_t>(offset_buffer_.size(), 1));
    has_offsets_array_ = true;
  }
  file_.append("document_offsets", offset_buffer_);
  offset_buffer_.clear();
}

void ShardWriter::close() {
  if (!token_buffer_.empty() || !has_tokens_array_) {
    write_tokens();
  }
  if (!offset_buffer_.empty() || !has_offsets_array_) {
    write_offsets();
  }
  file_.close();
}

}  // namespace lockstep
