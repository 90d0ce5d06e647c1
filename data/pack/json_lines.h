// Files with one JSON object a line, one of whose fields is a document; an empty one is none. Lines of nothing but
// white space are skipped.
#pragma once

#include <functional>
#include <string>

#include "data/pack/document_reader.h"

namespace lockstep {

// The documents of the lines that begin in the piece. A line of n bytes takes up to 5 n bytes of memory: the line and
// its text as the parser gathers it, each with room to grow, and the text in the end. Throws Error(kUsage), such as
//   pack: corpus.jsonl line 812: "text" is missing
void read_json_lines(const Plan& plan, const Piece& piece, const ReaderOptions& options, DocumentSink& sink);

// Calls `visit` with the place of the line and the size of the text, for the documents of a file in order, until it
// returns false. Throws what read_json_lines() throws.
void scan_json_lines(const InputFile& input, const std::string& field, std::uint64_t max_line_bytes,
                     const std::function<bool(DocumentExtent)>& visit);

}  // namespace lockstep
