// Files with one JSON object a line, one of whose fields is a document. Lines of nothing but white space are skipped.
#pragma once

#include <functional>

#include "data/pack/document_reader.h"

namespace lockstep {

// The documents of the lines that begin in the piece. Throws Error(kUsage), such as
//   pack: corpus.jsonl line 812: "text" is missing
void read_json_lines(const Plan& plan, const Piece& piece, const ReaderOptions& options, DocumentSink& sink);

// Calls `visit` for the lines of a file that are not blank, in order, until it returns false. They are not parsed.
// Throws Error(kUsage) at a line longer than `max_line_bytes`.
void scan_json_lines(const InputFile& input, std::uint64_t max_line_bytes,
                     const std::function<bool(DocumentExtent)>& visit);

}  // namespace lockstep
