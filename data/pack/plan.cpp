#include "data/pack/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "data/pack/json_lines.h"
#include "data/pack/json_objects.h"
#include "data/pack/text_cuts.h"
#include "data/pack/token_file.h"

namespace lockstep {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
// Up to this many documents of JSON lines or tokens are looked up before packing begins, so that the shares of --split
// hold for small corpora; with more, chance does it well enough.
constexpr std::size_t kFewDocuments = 4096;

// Small corpora are cut finer than --shard-mib, for several ranks to have something to do.
std::uint64_t unit_bytes_for(std::uint64_t corpus_bytes, std::uint64_t shard_mib) {
  constexpr std::uint64_t kUnits = 64;
  return std::clamp(corpus_bytes / kUnits, std::min(2 * kMiB, shard_mib * kMiB), shard_mib * kMiB);
}

using CutFunction = std::size_t (*)(std::string_view text, std::size_t low, std::size_t wanted);

// Applies a cut of text_cuts.h to a file, reading the bytes that it looks at. Needs low < wanted < file size.
std::uint64_t cut_in_file(const File& file, std::uint64_t low, std::uint64_t wanted, CutFunction cut) {
  const std::uint64_t begin = std::max(low, wanted > kLineWindow ? wanted - kLineWindow : 0);
  std::string window(wanted + 1 - begin, '\0');
  file.read_exactly(begin, std::as_writable_bytes(std::span(window)));
  return begin + cut(window, 0, wanted - begin);
}

// Cuts [part.begin, part.end) of a text file into pieces of about unit_bytes.
void add_pieces(const InputFile& input, const Piece& part, std::uint64_t unit_bytes, std::vector<Piece>& pieces) {
  Piece piece = part;
  std::optional<File> file;
  while (part.end - piece.begin > unit_bytes + unit_bytes / 2) {
    if (!file) {
      file = File::open_to_read(input.path);
    }
    piece.end = cut_in_file(*file, piece.begin, piece.begin + unit_bytes, word_cut);
    piece.ends_document = false;
    pieces.push_back(piece);
    piece.begin = piece.end;
    piece.starts_document = false;
  }
  piece.end = part.end;
  piece.ends_document = part.ends_document;
  pieces.push_back(piece);
}

void require_length(std::uint64_t size, std::size_t parts, const InputFile& file) {
  require(size >= parts, "{} holds a document of {} bytes, too short to be split into {} parts; see --split",
          file.path.string(), size, parts);
}

// Each text file is cut into one document a split, at the beginnings of lines.
std::vector<Piece> parts_by_position(const Plan& plan) {
  std::vector<Piece> parts;
  for (std::size_t f = 0; f < plan.files.size(); ++f) {
    const InputFile& input = plan.files[f];
    require_length(input.size, active_splits(plan.shares), input);
    const auto cuts = cuts_by_position(input.size, plan.shares);
    const File file = File::open_to_read(input.path);
    std::uint64_t begin = 0;
    for (std::size_t s = 0; s < kSplits; ++s) {
      if (plan.shares[s] > 0) {
        const std::uint64_t end =
            cuts[s + 1] == input.size ? input.size : cut_in_file(file, begin, cuts[s + 1], line_cut);
        parts.push_back({f, begin, end, static_cast<Split>(s), true, true});
        begin = end;
      }
    }
  }
  return parts;
}

std::vector<Piece> parts_by_file(const Plan& plan) {
  std::vector<SizedDocument> documents;
  for (const InputFile& file : plan.files) {
    documents.push_back({document_hash(file.name, 0, plan.seed), file.size});
  }
  const std::vector<Split> splits = assign_splits(documents, plan.shares);
  std::vector<Piece> parts;
  for (std::size_t f = 0; f < plan.files.size(); ++f) {
    parts.push_back({f, 0, plan.files[f].size, splits[f], true, true});
  }
  return parts;
}

std::vector<Piece> text_pieces(const Plan& plan, std::uint64_t unit_bytes) {
  const bool by_position = plan.files.size() < active_splits(plan.shares);
  std::vector<Piece> pieces;
  for (const Piece& part : by_position ? parts_by_position(plan) : parts_by_file(plan)) {
    add_pieces(plan.files[part.file], part, unit_bytes, pieces);
  }
  return pieces;
}

// Lets the file end where the first document begins that is not taken; `scan` visits its documents.
template <typename Scan>
void cut_after(std::uint64_t most, InputFile& file, const Scan& scan) {
  if (most == 0) {
    return;
  }
  std::uint64_t seen = 0;
  scan([&](DocumentExtent extent) {
    if (++seen > most) {
      file.size = extent.begin;
    }
    return seen <= most;
  });
}

// Looks up documents until there are too many of them, and decides how splits are chosen.
void choose_splits(Plan& plan, const PackOptions& options, std::uint32_t end_of_text) {
  std::map<DocumentPlace, std::size_t> places;  // in `documents`
  std::vector<SizedDocument> documents;
  const auto visit = [&](std::size_t f, DocumentExtent extent) {
    if (extent.begin >= plan.files[f].size) {
      return false;  // more than are taken of this file
    }
    const std::size_t first = plan.first_of(f);
    const auto [place, is_new] = places.try_emplace({first, extent.begin}, documents.size());
    if (is_new) {
      documents.push_back({document_hash(plan.files[first].name, extent.begin, plan.seed), 0});
    }
    documents[place->second].size += extent.size;
    return documents.size() <= kFewDocuments;
  };
  for (std::size_t f = 0; f < plan.files.size() && documents.size() <= kFewDocuments; ++f) {
    const auto visit_of_file = [&](DocumentExtent extent) { return visit(f, extent); };
    if (plan.format == PackFormat::kJsonl) {
      scan_json_lines(plan.files[f], options.field, options.memory_mib * kMiB, visit_of_file);
    } else if (has_conversations(plan.format)) {
      scan_json_objects(plan.files[f], options.memory_mib * kMiB, visit_of_file);
    } else {
      scan_tokens(plan.files[f], end_of_text, visit_of_file);
    }
  }
  require(!documents.empty(), "the input is empty: {} holds no document", plan.files.front().path.string());
  if (documents.size() > kFewDocuments) {
    return;
  }
  plan.by_position = documents.size() < active_splits(plan.shares);
  require(!has_conversations(plan.format) || !plan.by_position,
          "{} conversations cannot be split into {} parts; see --split", documents.size(), active_splits(plan.shares));
  if (!plan.by_position) {
    const std::vector<Split> splits = assign_splits(documents, plan.shares);
    for (const auto& [place, document] : places) {
      plan.known_splits.emplace(place, splits[document]);
    }
  }
}

// Ranges of about unit_bytes; which documents they hold shows when they are read.
std::vector<Piece> range_pieces(const Plan& plan, std::uint64_t unit_bytes) {
  std::vector<Piece> pieces;
  for (std::size_t f = 0; f < plan.files.size(); ++f) {
    Piece piece;
    piece.file = f;
    piece.begin = plan.format == PackFormat::kTokens ? kTokensHeaderBytes : 0;
    while (plan.files[f].size - piece.begin > unit_bytes + unit_bytes / 2) {
      piece.end = piece.begin + unit_bytes;  // whole ids of a tokens file
      pieces.push_back(piece);
      piece.begin = piece.end;
    }
    piece.end = plan.files[f].size;
    pieces.push_back(piece);
  }
  return pieces;
}

std::vector<Unit> group(const std::vector<Piece>& pieces, std::uint64_t unit_bytes) {
  std::vector<Unit> units;
  for (const Piece& piece : pieces) {
    const std::uint64_t bytes = piece.end - piece.begin;
    if (units.empty() || units.back().bytes + bytes > unit_bytes + unit_bytes / 2) {
      units.emplace_back();
    }
    units.back().pieces.push_back(piece);
    units.back().bytes += bytes;
  }
  return units;
}

}  // namespace

std::size_t Plan::first_of(std::size_t file) const {
  while (file > 0 && files[file - 1].path == files[file].path) {
    --file;
  }
  return file;
}

Split Plan::split_of(std::size_t file, std::uint64_t begin) const {
  const std::size_t first = first_of(file);
  if (!known_splits.empty()) {
    return known_splits.at({first, begin});
  }
  return split_by_hash(document_hash(files[first].name, begin, seed), shares);
}

int Plan::copies_of(std::size_t file, std::uint64_t begin) const {
  const double weight = chat_sources.at(files[file].input).weight;
  const double whole = std::floor(weight);
  // Independent of the split, and of the same document in other entries: another hash.
  const std::size_t repeat = file - first_of(file);
  const std::string name = repeat == 0 ? files[file].name : fmt::format("{} {}", files[file].name, repeat);
  const std::uint64_t hash = document_hash(name, begin, ~seed);
  const double draw = static_cast<double>(hash >> 11) * 0x1p-53;
  const int copies = static_cast<int>(whole) + (draw < weight - whole ? 1 : 0);
  return split_of(file, begin) == Split::kTrain ? copies : std::min(copies, 1);
}

Plan make_plan(const PackOptions& options, std::vector<InputFile> files, std::uint32_t end_of_text) {
  Plan plan;
  plan.format = options.format;
  plan.files = std::move(files);
  plan.shares = checked_shares(options.split);
  plan.seed = options.seed;
  plan.chat_sources = options.chat_sources;
  ChatSource usual;
  usual.format.is_pairs = plan.format == PackFormat::kPairs;
  plan.chat_sources.resize(options.inputs.size(), usual);
  for (InputFile& file : plan.files) {
    const std::uint64_t longest = options.memory_mib * kMiB;
    if (has_conversations(plan.format)) {
      cut_after(plan.chat_sources[file.input].most, file,
                [&](const auto& visit) { scan_json_objects(file, longest, visit); });
    } else if (plan.format == PackFormat::kJsonl) {
      cut_after(options.most, file, [&](const auto& visit) { scan_json_lines(file, options.field, longest, visit); });
    }
    plan.bytes += file.size;
    if (plan.format == PackFormat::kTokens) {
      check_tokens_header(file);
    }
  }
  const std::uint64_t unit_bytes = unit_bytes_for(plan.bytes, options.shard_mib) & ~std::uint64_t{3};
  if (plan.format == PackFormat::kText) {
    plan.units = group(text_pieces(plan, unit_bytes), unit_bytes);
  } else {
    choose_splits(plan, options, end_of_text);
    plan.units = group(range_pieces(plan, unit_bytes), unit_bytes);
  }
  plan.bytes = 0;
  for (const Unit& unit : plan.units) {
    plan.bytes += unit.bytes;
  }
  return plan;
}

std::uint64_t count_conversations(const PackOptions& options) {
  std::uint64_t count = 0;
  for (const InputFile& file : find_inputs(options)) {
    const std::uint64_t most = options.chat_sources.empty() ? 0 : options.chat_sources.at(file.input).most;
    std::uint64_t in_file = 0;
    scan_json_objects(file, options.memory_mib * kMiB, [&](DocumentExtent) { return ++in_file != most; });
    count += in_file;
  }
  return count;
}

}  // namespace lockstep
