#include "ops/cuda/sequence_tables.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

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

std::vector<std::int32_t> query_tiles(SequenceLengths lengths, int rows) {
  return most_work_first(tiles_of(lengths, rows), [](const SequenceTile& tile) { return tile.first_row; });
}

std::vector<std::int32_t> key_tiles(SequenceLengths lengths, int rows) {
  return most_work_first(tiles_of(lengths, rows),
                         [](const SequenceTile& tile) { return tile.length - tile.first_row; });
}

std::vector<std::int32_t> places_of(SequenceLengths lengths, int /*rows*/) {
  std::vector<std::int32_t> places;
  for (const std::int64_t length : lengths) {
    for (std::int32_t place = 0; place < length; ++place) {
      places.push_back(place);
    }
  }
  return places;
}

}  // namespace

const SequenceTables::Table& SequenceTables::table(SequenceLengths lengths, int rows, Make make) {
  Table& table = tables_.try_emplace(std::pair(make, rows), recorder_).first->second;
  if (!table.upload.is_recording() && std::ranges::equal(table.lengths, lengths)) {
    return table;
  }
  const std::vector<std::int32_t> numbers = make(lengths, rows);
  table.count = numbers.size();
  table.data = table.upload(numbers.size(), std::bit_ceil(numbers.size()),
                            [numbers](std::span<std::int32_t> to) { std::ranges::copy(numbers, to.begin()); });
  table.lengths.clear();
  if (!table.upload.is_recording()) {  // a recording uploads when it runs
    table.lengths.assign(lengths.begin(), lengths.end());
  }
  return table;
}

SequenceTiles SequenceTables::tiles(SequenceLengths lengths, int rows, Of of) {
  const Table& found = table(lengths, rows, of == Of::kQueries ? query_tiles : key_tiles);
  return {reinterpret_cast<const SequenceTile*>(found.data), found.count * sizeof(std::int32_t) / sizeof(SequenceTile)};
}

const std::int32_t* SequenceTables::places(SequenceLengths lengths) { return table(lengths, 0, places_of).data; }

}  // namespace lockstep::cuda
