#include "ops/cuda/sequence_tables.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace lockstep::cuda {
namespace {

std::vector<SequenceTile> tiles_of(SequenceLengths lengths, int rows) {
  std::vector<SequenceTile> tiles;
  SequenceTile tile;
  for (const std::int64_t length : lengths) {
    tile.length = static_cast<std::int32_t>(length);
    for (tile.first_row = 0; tile.first_row < tile.length; tile.first_row += rows) {
      tiles.push_back(tile);
    }
    tile.begin += tile.length;
    ++tile.index;
  }
  return tiles;
}

template <typename Work>
std::vector<std::int32_t> most_work_first(std::vector<SequenceTile> tiles, const Work& work) {
  std::ranges::stable_sort(tiles, std::ranges::greater(), work);
  std::vector<std::int32_t> numbers(tiles.size() * sizeof(SequenceTile) / sizeof(std::int32_t));
  std::memcpy(numbers.data(), tiles.data(), tiles.size() * sizeof(SequenceTile));
  return numbers;
}

std::vector<std::int32_t> places_of(SequenceLengths lengths) {
  std::vector<std::int32_t> places;
  for (const std::int64_t length : lengths) {
    for (std::int32_t place = 0; place < length; ++place) {
      places.push_back(place);
    }
  }
  return places;
}

}  // namespace

std::vector<std::int32_t> SequenceTables::numbers_of(Kind kind, SequenceLengths lengths, int rows) {
  switch (kind) {
    case Kind::kQueryTiles:
      return most_work_first(tiles_of(lengths, rows), [](const SequenceTile& tile) { return tile.first_row; });
    case Kind::kKeyTiles:
      return most_work_first(tiles_of(lengths, rows),
                             [](const SequenceTile& tile) { return tile.length - tile.first_row; });
    case Kind::kPlaces:
      break;
  }
  return places_of(lengths);
}

const SequenceTables::Table& SequenceTables::table(Kind kind, SequenceLengths lengths, int rows) {
  Table& table = tables_.try_emplace(std::pair(kind, rows), recorder_).first->second;
  require(!table.upload.is_recording(), "sequences of different lengths cannot be recorded");
  if (std::ranges::equal(table.lengths, lengths)) {
    return table;
  }
  table.lengths.clear();  // should what follows fail
  std::vector<std::int32_t> numbers = numbers_of(kind, lengths, rows);
  table.count = numbers.size();
  table.data = table.upload(
      table.count, std::bit_ceil(table.count),
      [numbers = std::move(numbers)](std::span<std::int32_t> to) { std::ranges::copy(numbers, to.begin()); });
  table.lengths.assign(lengths.begin(), lengths.end());
  return table;
}

SequenceTiles SequenceTables::tiles(SequenceLengths lengths, int rows, Of of) {
  const Table& found = table(of == Of::kQueries ? Kind::kQueryTiles : Kind::kKeyTiles, lengths, rows);
  return {reinterpret_cast<const SequenceTile*>(found.data), found.count * sizeof(std::int32_t) / sizeof(SequenceTile)};
}

const std::int32_t* SequenceTables::places(SequenceLengths lengths) { return table(Kind::kPlaces, lengths, 0).data; }

}  // namespace lockstep::cuda
