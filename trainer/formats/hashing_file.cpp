#include "trainer/formats/hashing_file.h"

#include <algorithm>
#include <utility>

namespace lockstep {

HashingFileWriter::HashingFileWriter(const std::filesystem::path& path, BeforeWrite before_write)
    : file_(File::create(path)), before_write_(std::move(before_write)) {}

void HashingFileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
    if (before_write_) {
      before_write_(piece.size());
    }
    hasher_.update(piece);
    file_.write(offset_, piece);
    offset_ += piece.size();
    if (offset_ - writeback_started_ >= kWritebackBytes) {
      file_.start_writeback(writeback_started_, offset_ - writeback_started_);
      writeback_started_ = offset_;
    }
    bytes = bytes.subspan(piece.size());
  }
}

void HashingFileWriter::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

}  // namespace lockstep
