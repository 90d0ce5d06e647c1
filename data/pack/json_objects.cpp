#include "data/pack/json_objects.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "data/chat/conversation.h"

namespace lockstep {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 20;

// Walks over the top-level objects of a file, holding one block, or a longer object, at a time. What is inside an
// object is looked at no closer than it takes to find its end.
class ObjectScanner {
 public:
  ObjectScanner(const InputFile& input, std::uint64_t max_object_bytes)
      : file_(File::open_to_read(input.path)), max_object_bytes_(max_object_bytes) {}

  // The next object; false at the end of the file. `object` is valid until the next call.
  bool next(std::string_view& object) {
    buffer_.erase(0, used_);
    begin_ += used_;
    used_ = 0;
    if (!find_begin()) {
      return false;
    }
    const std::size_t end = find_end();
    object = std::string_view(buffer_).substr(used_, end - used_);
    object_begin_ = begin_ + used_;
    used_ = end;
    return true;
  }
  [[nodiscard]] std::uint64_t object_begin() const { return object_begin_; }
  [[nodiscard]] std::string place() const { return place_in_file(file_, object_begin_); }

 private:
  bool fill() {
    const std::size_t held = buffer_.size();
    buffer_.resize(held + std::max(kBlockBytes, held / 2));
    const std::size_t size = file_.read_some(begin_ + held, std::as_writable_bytes(std::span(buffer_)).subspan(held));
    buffer_.resize(held + size);
    return size > 0;
  }
  [[noreturn]] void refuse(std::uint64_t at, const std::string& what) const {
    fail(ErrorCode::kUsage, "{}: {}", place_in_file(file_, at), what);
  }

  // Moves used_ to the next '{'. Between objects stand white space, and in a list commas.
  bool find_begin() {
    for (;; ++used_) {
      if (used_ == buffer_.size() && !fill()) {
        if (in_list_) {
          refuse(begin_ + used_, "the list is cut short");
        }
        return false;
      }
      const char c = buffer_[used_];
      constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
      const std::uint64_t at = begin_ + used_;
      if (c == ' ' || c == '\t' || c == '\r' || c == '\n' || (at < 3 && c == kByteOrderMark[at])) {
        continue;
      }
      if (c == '{' && !is_closed_ && (!in_list_ || !needs_comma_)) {
        needs_comma_ = true;
        has_object_ = true;
        return true;
      }
      if (c == '[' && !in_list_ && !is_closed_ && !has_object_) {
        in_list_ = true;
      } else if (c == ']' && in_list_ && (needs_comma_ || !has_object_)) {
        in_list_ = false;
        is_closed_ = true;
      } else if (c == ',' && in_list_ && needs_comma_) {
        needs_comma_ = false;
      } else {
        refuse(begin_ + used_, fmt::format("found '{}' where a JSON object was expected",
                                           static_cast<unsigned char>(c) < 128 ? std::string(1, c) : "?"));
      }
    }
  }

  // Behind the '}' that closes the object at used_.
  std::size_t find_end() {
    std::size_t depth = 0;
    bool in_text = false;
    for (std::size_t at = used_;; ++at) {
      while (at >= buffer_.size()) {
        if (at - used_ > max_object_bytes_) {
          refuse(begin_ + used_, fmt::format("an object longer than {} MiB; raise --memory", max_object_bytes_ >> 20));
        }
        if (!fill()) {
          refuse(begin_ + used_, "the object is cut short");
        }
      }
      const char c = buffer_[at];
      if (in_text) {
        if (c == '\\') {
          ++at;  // what it escapes ends nothing
        } else if (c == '"') {
          in_text = false;
        }
      } else if (c == '"') {
        in_text = true;
      } else if (c == '{') {
        ++depth;
      } else if (c == '}' && --depth == 0) {
        return at + 1;
      }
    }
  }

  File file_;
  std::uint64_t max_object_bytes_;
  std::string buffer_;
  std::uint64_t begin_ = 0;  // of buffer_ in the file
  std::size_t used_ = 0;     // of buffer_
  std::uint64_t object_begin_ = 0;
  bool in_list_ = false;
  bool is_closed_ = false;
  bool has_object_ = false;
  bool needs_comma_ = false;  // before the next object of a list
};

}  // namespace

void read_conversations(const Plan& plan, const Piece& piece, const ReaderOptions& options, DocumentSink& sink) {
  ObjectScanner scanner(plan.files[piece.file], options.max_line_bytes);
  std::string_view object;
  while (sink.wants_more() && scanner.next(object) && scanner.object_begin() < piece.end) {
    if (scanner.object_begin() < piece.begin) {
      continue;
    }
    std::string problem;
    const ChatFormat& format = plan.chat_sources.at(plan.files[piece.file].input).format;
    const auto conversation = parse_conversation(object, format, problem);
    if (!conversation) {
      fail(ErrorCode::kUsage, "{}: {}", scanner.place(), problem);
    }
    try {
      for (int i = 0; i < plan.copies_of(piece.file, scanner.object_begin()); ++i) {
        sink.add(plan.split_of(piece.file, scanner.object_begin()), *conversation);
      }
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUsage) {
        throw;
      }
      fail(ErrorCode::kUsage, "{}: {}", scanner.place(), error.what());
    }
  }
}

void scan_json_objects(const InputFile& input, std::uint64_t max_object_bytes,
                       const std::function<bool(DocumentExtent)>& visit) {
  ObjectScanner scanner(input, max_object_bytes);
  std::string_view object;
  while (scanner.next(object) && visit({scanner.object_begin(), object.size()})) {
  }
}

}  // namespace lockstep
