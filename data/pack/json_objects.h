// Files of JSON objects: one after the other, as in JSON lines, or in one list.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "data/pack/document_reader.h"

namespace lockstep {

// Hands on the conversations of the objects that begin in the piece (data/chat/conversation.h). Throws Error(kUsage),
// such as
//   pack: chats.json line 812: turn 3 is the user's, expected the assistant's
void read_conversations(const Plan& plan, const Piece& piece, const ReaderOptions& options, DocumentSink& sink);

// Calls `visit` with the extent of each object of a file in order, until it returns false. Throws Error(kUsage) for a
// file that holds anything else.
void scan_json_objects(const InputFile& input, std::uint64_t max_object_bytes,
                       const std::function<bool(DocumentExtent)>& visit);

}  // namespace lockstep
