#include "data/pack/token_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace lockstep {
namespace {

static_assert(std::endian::native == std::endian::little, "ids are read as they lie in the file");

// A kind of file: how it says what it is, and the bytes of an id.
struct TokensKind {
  std::int32_t magic;
  std::int32_t version;
  std::uint64_t id_bytes;
};
constexpr std::array<TokensKind, 2> kKinds = {{{20240520, 1, 2}, {20240801, 7, 4}}};

using Header = std::array<std::int32_t, kTokensHeaderBytes / sizeof(std::int32_t)>;

// nullptr when the file does not begin as one of them does.
const TokensKind* kind_of(const File& file, Header& header) {
  if (file.read_some(0, std::as_writable_bytes(std::span(header))) != kTokensHeaderBytes) {
    return nullptr;
  }
  const auto* const kind =
      std::find_if(kKinds.begin(), kKinds.end(), [&](const TokensKind& k) { return k.magic == header[0]; });
  return kind == kKinds.end() ? nullptr : kind;
}

// Walks over the runs of ids between end-of-text ids, block by block. Positions are bytes of the file.
class RunReader {
 public:
  RunReader(const InputFile& input, std::uint64_t begin, std::uint32_t end_of_text)
      : file_(File::open_to_read(input.path)), at_(begin), end_(input.size), end_of_text_(end_of_text) {
    Header header = {};
    const TokensKind* const kind = kind_of(file_, header);
    require(kind != nullptr, "{} is not what it was when packing began", input.path.string());
    id_bytes_ = kind->id_bytes;
  }

  [[nodiscard]] std::uint64_t id_bytes() const { return id_bytes_; }
  // The byte that is looked at next.
  [[nodiscard]] std::uint64_t at() const { return at_; }
  // The place among the ids of the file.
  [[nodiscard]] std::uint64_t index() const { return (at_ - kTokensHeaderBytes) / id_bytes_; }
  // Looks at the id before next.
  void step_back() {
    at_ -= id_bytes_;
    ids_.clear();
    used_ = 0;
  }

  // Moves behind end-of-text ids; false at the end of the file.
  bool skip_separators() {
    while (refill()) {
      if (ids_[used_] != end_of_text_) {
        return true;
      }
      advance(1);
    }
    return false;
  }

  // The next ids of the run, at most a block; empty at the end of it.
  [[nodiscard]] std::span<const std::uint32_t> next_of_run() {
    if (!refill()) {
      return {};
    }
    const auto begin = ids_.begin() + static_cast<std::ptrdiff_t>(used_);
    const auto end = std::find(begin, ids_.end(), end_of_text_);
    const std::span<const std::uint32_t> part(begin, end);
    advance(part.size());
    return part;
  }

 private:
  // Makes sure that there is an id at used_; false at the end of the file.
  bool refill() {
    if (used_ < ids_.size()) {
      return true;
    }
    constexpr std::uint64_t kBlockIds = 1U << 18;
    ids_.resize(std::min(kBlockIds, (end_ - at_) / id_bytes_));
    used_ = 0;
    if (id_bytes_ == sizeof(std::uint32_t)) {
      file_.read_exactly(at_, std::as_writable_bytes(std::span(ids_)));
    } else {
      narrow_.resize(ids_.size());
      file_.read_exactly(at_, std::as_writable_bytes(std::span(narrow_)));
      std::copy(narrow_.begin(), narrow_.end(), ids_.begin());
    }
    return !ids_.empty();
  }
  void advance(std::size_t ids) {
    used_ += ids;
    at_ += ids * id_bytes_;
  }

  File file_;
  std::uint64_t at_;
  std::uint64_t end_;
  std::uint32_t end_of_text_;
  std::uint64_t id_bytes_ = 0;
  std::vector<std::uint32_t> ids_;
  std::vector<std::uint16_t> narrow_;
  std::size_t used_ = 0;
};

// The next ids of the run, after a check that the tokenizer has them.
std::span<const std::uint32_t> next_checked(RunReader& runs, const InputFile& input, std::uint32_t vocabulary_size) {
  const std::span<const std::uint32_t> ids = runs.next_of_run();
  const auto bad = std::find_if(ids.begin(), ids.end(), [&](std::uint32_t id) { return id >= vocabulary_size; });
  if (bad != ids.end()) {
    fail(ErrorCode::kUsage, "{} token {} is {}, the tokenizer's vocabulary has {} ids", input.path.string(),
         runs.index() - static_cast<std::uint64_t>(ids.end() - bad), *bad, vocabulary_size);
  }
  return ids;
}

// Hands on one document in parts.
void read_by_position(const Plan& plan, const InputFile& input, std::uint64_t ids_in_document, RunReader& runs,
                      std::uint32_t vocabulary_size, DocumentSink& sink) {
  require(ids_in_document >= active_splits(plan.shares),
          "{}: a document of {} tokens is too short to be split into {} parts; see --split", input.path.string(),
          ids_in_document, active_splits(plan.shares));
  const auto cuts = cuts_by_position(ids_in_document, plan.shares);
  std::size_t split = kSplits;  // none begun
  std::uint64_t done = 0;
  for (auto ids = next_checked(runs, input, vocabulary_size); !ids.empty();
       ids = next_checked(runs, input, vocabulary_size)) {
    while (!ids.empty()) {
      const auto of_id = static_cast<std::size_t>(std::upper_bound(cuts.begin(), cuts.end(), done) - cuts.begin()) - 1;
      if (of_id != split) {
        if (split != kSplits) {
          sink.end(true);
        }
        split = of_id;
        sink.begin(static_cast<Split>(split), true);
      }
      const auto count = std::min<std::uint64_t>(ids.size(), cuts[split + 1] - done);
      sink.add(ids.first(count));
      ids = ids.subspan(count);
      done += count;
    }
  }
  sink.end(true);
}

}  // namespace

void check_tokens_header(const InputFile& input) {
  Header header = {};
  const TokensKind* const kind = kind_of(File::open_to_read(input.path), header);
  require(kind != nullptr,
          "{} is not a file of tokens: it does not begin with a header of {} bytes and the number {} or {}",
          input.path.string(), kTokensHeaderBytes, kKinds[0].magic, kKinds[1].magic);
  require(header[1] == kind->version, "{} has version {}, expected {}", input.path.string(), header[1], kind->version);
  const std::uint64_t found = input.size - kTokensHeaderBytes;
  require(header[2] >= 0 && found == static_cast<std::uint64_t>(header[2]) * kind->id_bytes,
          "{} says it has {} tokens of {} bytes, but {} bytes follow the header", input.path.string(), header[2],
          kind->id_bytes, found);
}

void scan_tokens(const InputFile& input, std::uint32_t end_of_text, const std::function<bool(DocumentExtent)>& visit) {
  RunReader runs(input, kTokensHeaderBytes, end_of_text);
  while (runs.skip_separators()) {
    const std::uint64_t begin = runs.at();
    while (!runs.next_of_run().empty()) {
    }
    if (!visit({begin, runs.at() - begin})) {
      return;
    }
  }
}

void read_token_file(const Plan& plan, const Piece& piece, const ReaderOptions& options, DocumentSink& sink) {
  const InputFile& input = plan.files[piece.file];
  RunReader runs(input, piece.begin, options.end_of_text);
  if (piece.begin > kTokensHeaderBytes) {
    // A run that reaches into the piece from before belongs to the piece before.
    runs.step_back();
    while (!runs.next_of_run().empty()) {
    }
  }
  while (sink.wants_more() && runs.skip_separators() && runs.at() < piece.end) {
    if (plan.by_position) {
      std::uint64_t size = 0;
      scan_tokens(input, options.end_of_text, [&](DocumentExtent extent) {
        size = extent.size;
        return extent.begin != runs.at();
      });
      read_by_position(plan, input, size / runs.id_bytes(), runs, options.vocabulary_size, sink);
      continue;
    }
    sink.begin(plan.split_of(piece.file, runs.at()), true);
    for (auto ids = next_checked(runs, input, options.vocabulary_size); !ids.empty();
         ids = next_checked(runs, input, options.vocabulary_size)) {
      sink.add(ids);
    }
    sink.end(true);
  }
}

}  // namespace lockstep
