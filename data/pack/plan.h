// The units of work, and the split that each document goes to.
//
// A plan is a pure function of the options and the files, so every rank makes the same one by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "data/pack/inputs.h"
#include "data/pack/pack.h"
#include "data/pack/split.h"

namespace lockstep {

// A range of a file. Text: bytes [begin, end), all of one split. Other formats: the documents that begin in [begin,
// end), wherever they end.
struct Piece {
  std::size_t file = 0;
  std::uint64_t begin = 0;  // bytes
  std::uint64_t end = 0;
  Split split = Split::kTrain;  // of text
  bool starts_document = true;  // text: false where a long file goes on
  bool ends_document = true;
};

struct Unit {
  std::vector<Piece> pieces;
  std::uint64_t bytes = 0;
};

// A document of JSON lines or tokens: a file and the byte where it begins.
using DocumentPlace = std::pair<std::size_t, std::uint64_t>;

struct Plan {
  PackFormat format = PackFormat::kText;
  std::vector<InputFile> files;
  std::vector<Unit> units;
  std::uint64_t bytes = 0;  // of all units
  Shares shares = {};
  std::uint64_t seed = 0;

  // JSON lines and tokens: whether each document is cut into one part a split, because there are fewer documents than
  // splits; otherwise the split of each document where all are known beforehand, by the first of the files that are
  // one.
  bool by_position = false;
  std::map<DocumentPlace, Split> known_splits;

  std::vector<ChatSource> chat_sources;  // of conversations, by InputFile::input

  // How often a conversation is packed: as its source's weight says in training, and at most once elsewhere.
  [[nodiscard]] int copies_of(std::size_t file, std::uint64_t begin) const;
  // The split of a document of JSON lines or tokens that is not cut by position. It is the same in all files that are
  // one: of a row that two entries of dataset_info.json read, none trains on what the other is validated with.
  [[nodiscard]] Split split_of(std::size_t file, std::uint64_t begin) const;
  // The first of `files` that is the same as this one on the disk.
  [[nodiscard]] std::size_t first_of(std::size_t file) const;
};

// `end_of_text` separates the documents of a tokens file. Throws Error(kUsage) for bad shares, bad .bin headers, and
// input that holds no document or is too short to split.
[[nodiscard]] Plan make_plan(const PackOptions& options, std::vector<InputFile> files, std::uint32_t end_of_text);

}  // namespace lockstep
