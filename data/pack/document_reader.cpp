#include "data/pack/document_reader.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/pack/json_lines.h"
#include "data/pack/json_objects.h"
#include "data/pack/token_file.h"

namespace lockstep {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 20;

void read_text(const Plan& plan, const Piece& piece, DocumentSink& sink) {
  const File file = File::open_to_read(plan.files[piece.file].path);
  std::string block;
  sink.begin(piece.split, piece.starts_document);
  for (std::uint64_t at = piece.begin; at < piece.end && sink.wants_more(); at += block.size()) {
    block.resize(std::min<std::uint64_t>(kBlockBytes, piece.end - at));
    file.read_exactly(at, std::as_writable_bytes(std::span(block)));
    sink.add(block);
  }
  sink.end(piece.ends_document);
}

}  // namespace

void read_unit(const Plan& plan, const Unit& unit, const ReaderOptions& options, DocumentSink& sink) {
  for (const Piece& piece : unit.pieces) {
    if (!sink.wants_more()) {
      return;
    }
    switch (plan.format) {
      case PackFormat::kText:
        read_text(plan, piece, sink);
        break;
      case PackFormat::kJsonl:
        read_json_lines(plan, piece, options, sink);
        break;
      case PackFormat::kTokens:
        read_token_file(plan, piece, options, sink);
        break;
      case PackFormat::kChat:
      case PackFormat::kPairs:
        read_conversations(plan, piece, options, sink);
        break;
    }
  }
}

}  // namespace lockstep
