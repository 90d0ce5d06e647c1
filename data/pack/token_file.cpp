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

constexpr std::int32_t kMagic = 20240520;
constexpr std::int32_t kVersion = 1;

// Walks over the runs of ids between end-of-text ids, block by block.
class RunReader {
 public:
  RunReader(const InputFile& input, std::uint64_t begin, std::uint32_t end_of_text)
      : file_(File::open_to_read(input.path)), at_(begin), end_(input.size), end_of_text_(end_of_text) {}

  // The byte that is looked at next.
  [[nodiscard]] std::uint64_t at() const { return at_; }

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
  [[nodiscard]] std::span<const std::uint16_t> next_of_run() {
    if (!refill()) {
      return {};
    }
    const auto begin = ids_.begin() + static_cast<std::ptrdiff_t>(used_);
    const auto end = std::find(begin, ids_.end(), end_of_text_);
    const std::span<const std::uint16_t> part(begin, end);
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
    ids_.resize(std::min(kBlockIds, (end_ - at_) / sizeof(std::uint16_t)));
    used_ = 0;
    file_.read_exactly(at_, std::as_writable_bytes(std::span(ids_)));
    return !ids_.empty();
  }
  void advance(std::size_t ids) {
    used_ += ids;
    at_ += ids * sizeof(std::uint16_t);
  }

  File file_;
  std::uint64_t at_;
  std::uint64_t end_;
  std::uint32_t end_of_text_;
  std::vector<std::uint16_t> ids_;
  std::size_t used_ = 0;
};

// Hands on ids that were checked against the vocabulary.
class IdChecker {
 public:
  IdChecker(const InputFile& input, std::uint32_t vocabulary_size) : input_(input), size_(vocabulary_size) {}

  std::span<const std::uint32_t> check(std::span<const std::uint16_t> ids, std::uint64_t end_byte) {
    wide_.assign(ids.begin(), ids.end());
    const auto bad = std::find_if(wide_.begin(), wide_.end(), [&](std::uint32_t id) { return id >= size_; });
    if (bad != wide_.end()) {
      const auto after = static_cast<std::uint64_t>(wide_.end() - bad);
      fail(ErrorCode::kUsage, "{} token {} is {}, the tokenizer's vocabulary has {} ids", input_.path.string(),
           (end_byte - kTokensHeaderBytes) / sizeof(std::uint16_t) - after, *bad, size_);
    }
    return wide_;
  }

 private:
  const InputFile& input_;
  std::uint32_t size_;
  std::vector<std::uint32_t> wide_;
};

// Hands on one document in parts.
void read_by_position(const Plan& plan, const InputFile& input, std::uint64_t ids_in_document, RunReader& runs,
                      IdChecker& checker, DocumentSink& sink) {
  require(ids_in_document >= active_splits(plan.shares),
          "{}: a document of {} tokens is too short to be split into {} parts; see --split", input.path.string(),
          ids_in_document, active_splits(plan.shares));
  const auto cuts = cuts_by_position(ids_in_document, plan.shares);
  std::size_t split = kSplits;  // none begun
  std::uint64_t done = 0;
  for (auto part = runs.next_of_run(); !part.empty(); part = runs.next_of_run()) {
    std::span<const std::uint32_t> ids = checker.check(part, runs.at());
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
  std::array<std::int32_t, kTokensHeaderBytes / sizeof(std::int32_t)> header = {};
  const File file = File::open_to_read(input.path);
  const std::size_t size = file.read_some(0, std::as_writable_bytes(std::span(header)));
  require(size == kTokensHeaderBytes && header[0] == kMagic,
          "{} is not a file of tokens: it does not begin with a header of {} bytes and the number {}",
          input.path.string(), kTokensHeaderBytes, kMagic);
  require(header[1] == kVersion, "{} has version {}, expected {}", input.path.string(), header[1], kVersion);
  const std::uint64_t found = input.size - kTokensHeaderBytes;
  require(header[2] >= 0 && found == static_cast<std::uint64_t>(header[2]) * sizeof(std::uint16_t),
          "{} says it has {} tokens, but {} bytes of them follow the header", input.path.string(), header[2], found);
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
  IdChecker checker(input, options.vocabulary_size);
  RunReader runs(input, piece.begin, options.end_of_text);
  if (piece.begin > kTokensHeaderBytes) {
    // A run that reaches into the piece from before belongs to the piece before.
    runs = RunReader(input, piece.begin - sizeof(std::uint16_t), options.end_of_text);
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
      read_by_position(plan, input, size / sizeof(std::uint16_t), runs, checker, sink);
      continue;
    }
    sink.begin(plan.split_of(piece.file, runs.at()), true);
    for (auto part = runs.next_of_run(); !part.empty(); part = runs.next_of_run()) {
      sink.add(checker.check(part, runs.at()));
    }
    sink.end(true);
  }
}

}  // namespace lockstep
