// Reads the documents of a unit, streaming: long text is handed on in blocks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "data/chat/conversation.h"
#include "data/pack/plan.h"

namespace lockstep {

// Receives documents. Of the add functions text formats call the first, tokens the second, any number of times between
// begin() and end(); conversations come whole.
class DocumentSink {
 public:
  virtual ~DocumentSink() = default;
  // The flags are false where a long text file continues from, or into, another unit.
  virtual void begin(Split split, bool starts_document) = 0;
  virtual void add(std::string_view text) = 0;
  virtual void add(std::span<const std::uint32_t> ids) = 0;
  virtual void end(bool ends_document) = 0;
  virtual void add(Split split, const Conversation& conversation) = 0;
  // Asked between documents and between blocks of one; false ends the reading.
  [[nodiscard]] virtual bool wants_more() = 0;
};

struct ReaderOptions {
  std::string field;                  // JSON lines
  std::uint64_t max_line_bytes = 0;   // JSON lines, objects of conversations
  std::uint32_t end_of_text = 0;      // tokens
  std::uint32_t vocabulary_size = 0;  // tokens: ids from here on are refused
};

// Throws Error(kUsage) for input that its format does not allow, naming file and line or position.
void read_unit(const Plan& plan, const Unit& unit, const ReaderOptions& options, DocumentSink& sink);

// A document of a .jsonl or .bin file: the byte where its line or run of ids begins, and its size in bytes.
struct DocumentExtent {
  std::uint64_t begin = 0;
  std::uint64_t size = 0;
};

}  // namespace lockstep
