#include "data/pack/json_lines.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "data/pack/text_cuts.h"

namespace lockstep {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 20;

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

// Walks over the lines of a file from a byte on, holding one block, or a longer line, at a time.
class LineReader {
 public:
  LineReader(const InputFile& input, std::uint64_t begin) : file_(File::open_to_read(input.path)), at_(begin) {}

  // The next line without its line feed; false at the end of the file. `line` is valid until the next call.
  bool next(std::uint64_t max_bytes, std::string_view& line) {
    line_begin_ = at_;
    std::size_t searched = 0;
    for (;;) {
      const std::string_view rest = std::string_view(buffer_).substr(used_);
      const std::size_t found = rest.find('\n', searched);
      if (found != std::string_view::npos) {
        line = rest.substr(0, found);
        advance(found + 1);
        return true;
      }
      searched = rest.size();
      if (searched > max_bytes) {
        fail(ErrorCode::kUsage, "{}: longer than {} MiB; raise --memory", place(), max_bytes >> 20);
      }
      if (!fill()) {
        line = std::string_view(buffer_).substr(used_);
        advance(line.size());
        return !line.empty();
      }
    }
  }
  [[nodiscard]] std::uint64_t line_begin() const { return line_begin_; }

  [[nodiscard]] std::string place() const { return place_in_file(file_, line_begin_); }

 private:
  // Appends a block to the buffer; false at the end of the file.
  bool fill() {
    buffer_.erase(0, used_);
    used_ = 0;
    const std::size_t held = buffer_.size();
    buffer_.resize(held + std::max(kBlockBytes, held / 2));
    const std::size_t size = file_.read_some(at_ + held, std::as_writable_bytes(std::span(buffer_)).subspan(held));
    buffer_.resize(held + size);
    return size > 0;
  }
  void advance(std::size_t bytes) {
    used_ += bytes;
    at_ += bytes;
  }

  File file_;
  std::uint64_t at_;  // of buffer_[used_] in the file
  std::uint64_t line_begin_ = 0;
  std::string buffer_;
  std::size_t used_ = 0;
};

// The document in a line; an explanation goes to `problem` when there is none.
std::string parse_line(std::string_view line, const std::string& field, std::string& problem) {
  try {
    nlohmann::json object = nlohmann::json::parse(line);
    if (!object.is_object()) {
      problem = "not a JSON object";
      return {};
    }
    const auto member = object.find(field);
    if (member == object.end()) {
      problem = fmt::format("\"{}\" is missing", field);
      return {};
    }
    if (!member->is_string()) {
      problem = fmt::format("\"{}\" is not a text", field);
      return {};
    }
    return std::move(member->get_ref<std::string&>());
  } catch (const nlohmann::json::parse_error& error) {
    problem = fmt::format("not valid JSON at byte {}", error.byte);
    return {};
  } catch (const nlohmann::json::out_of_range&) {
    problem = "a number that does not fit";
    return {};
  }
}

// The document in the line that the reader is at. Throws Error(kUsage) when there is none.
std::string document_of(const LineReader& reader, std::string_view line, const std::string& field) {
  std::string problem;
  std::string text = parse_line(line, field, problem);
  if (!problem.empty()) {
    fail(ErrorCode::kUsage, "{}: {}", reader.place(), problem);
  }
  return text;
}

// In blocks, so that a sink which keeps what it cannot use yet keeps little.
void hand_on(std::string_view text, Split split, DocumentSink& sink) {
  sink.begin(split, true);
  for (std::size_t at = 0; at < text.size(); at += kBlockBytes) {
    sink.add(text.substr(at, kBlockBytes));
  }
  sink.end(true);
}

void hand_on_by_position(const Plan& plan, std::string_view text, const LineReader& reader, DocumentSink& sink) {
  const std::size_t parts = active_splits(plan.shares);
  if (text.size() < parts) {
    fail(ErrorCode::kUsage, "{}: a document of {} bytes is too short to be split into {} parts; see --split",
         reader.place(), text.size(), parts);
  }
  const auto cuts = cuts_by_position(text.size(), plan.shares);
  std::size_t begin = 0;
  for (std::size_t s = 0; s < kSplits; ++s) {
    if (plan.shares[s] > 0) {
      const std::size_t end = cuts[s + 1] == text.size() ? text.size() : line_cut(text, begin, cuts[s + 1]);
      hand_on(text.substr(begin, end - begin), static_cast<Split>(s), sink);
      begin = end;
    }
  }
}

}  // namespace

void read_json_lines(const Plan& plan, const Piece& piece, const ReaderOptions& options, DocumentSink& sink) {
  // From the byte before the piece on: the rest of that line, perhaps only its line feed, belongs to the piece before.
  const InputFile& input = plan.files[piece.file];
  LineReader reader(input, piece.begin == 0 ? 0 : piece.begin - 1);
  std::string_view line;
  if (piece.begin > 0 && !reader.next(options.max_line_bytes, line)) {
    return;
  }
  while (sink.wants_more() && reader.next(options.max_line_bytes, line) && reader.line_begin() < piece.end) {
    if (is_blank(line)) {
      continue;
    }
    const std::string text = document_of(reader, line, options.field);
    if (text.empty()) {
      continue;
    }
    if (plan.by_position) {
      hand_on_by_position(plan, text, reader, sink);
    } else {
      hand_on(text, plan.split_of(piece.file, reader.line_begin()), sink);
    }
  }
}

void scan_json_lines(const InputFile& input, const std::string& field, std::uint64_t max_line_bytes,
                     const std::function<bool(DocumentExtent)>& visit) {
  LineReader reader(input, 0);
  std::string_view line;
  while (reader.next(max_line_bytes, line)) {
    const std::size_t size = is_blank(line) ? 0 : document_of(reader, line, field).size();
    if (size > 0 && !visit({reader.line_begin(), size})) {
      return;
    }
  }
}

}  // namespace lockstep
