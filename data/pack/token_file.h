// llm.c's files of token ids (https://github.com/karpathy/llm.c, dev/data/data_common.py): a header of 256 int32, then
// the ids. The header begins with a magic number, a version and the count of ids: 20240520 and 1 for uint16 ids (its
// gpt-2 files), 20240801 and 7 for uint32 ids (its llama-3 files). A document is a run of ids without the end-of-text
// id; where several of those follow each other there is none between them.
#pragma once

#include <functional>

#include "data/pack/document_reader.h"

namespace lockstep {

inline constexpr std::uint64_t kTokensHeaderBytes = 1024;

// Throws Error(kUsage) unless the file has the header, and as many ids as it says.
void check_tokens_header(const InputFile& input);

// The documents that begin in the piece. Throws Error(kUsage) for an id outside the vocabulary.
void read_token_file(const Plan& plan, const Piece& piece, const ReaderOptions& options, DocumentSink& sink);

// Calls `visit` for the documents of a file in order until it returns false.
void scan_tokens(const InputFile& input, std::uint32_t end_of_text, const std::function<bool(DocumentExtent)>& visit);

}  // namespace lockstep
