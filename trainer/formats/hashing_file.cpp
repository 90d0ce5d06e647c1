#include "trainer/formats/hashing_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace lockstep {

HashingFileWriter::HashingFileWriter(const std::filesystem::path& path, BeforeWrite before_write)
    : file_(File::create(path)), before_write_(std::move(before_write)), block_(Buffer::allocate(kPieceBytes)) {
  file_.bypass_cache();
}

void HashingFileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes - block_used_));
    std::memcpy(block_.data() + block_used_, piece.data(), piece.size());
    block_used_ += piece.size();
    if (block_used_ == kPieceBytes) {
      write_block();
    }
    bytes = bytes.subspan(piece.size());
  }
}

void HashingFileWriter::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void HashingFileWriter::write_block() {
  const std::span<const std::byte> block(block_.data(), block_used_);
  if (before_write_) {
    before_write_(block.size());
  }
  hasher_.update(block);
  file_.write(written_, block);
  // Where the block lies in the system's memory after all, the disk works while the next one is hashed.
  file_.start_writeback(written_, block.size());
  written_ += block.size();
  block_used_ = 0;
}

void HashingFileWriter::sync() {
  if (block_used_ > 0) {
    write_block();
  }
  file_.sync();
}

}  // namespace lockstep
