// What both sets of attention kernels (attention.cu, attention_tensor.cu) are given.
#pragma once

#include <array>
#include <type_traits>

#include "base/random.h"
#include "ops/backend.h"
#include "ops/cuda/card.cuh"
#include "ops/cuda/sequence_tables.h"
#include "ops/cuda/vector.cuh"
#include "ops/sequences.h"

namespace lockstep::cuda {

// Where a block finds its sequence, and which rows of that are its own.
struct BlockRows {
  int batch;
  int begin;  // of the sequence, among the rows of the batch entry
  int first;  // the block's, from there
};

template <typename T>
struct AttentionRows {
  T* data;
  std::int64_t row_stride;
  std::int64_t batch_stride;

  __device__ T* at(const BlockRows& block, int row, int column) const {
    return data + block.batch * batch_stride + (block.begin + row) * row_stride + column;
  }
};
template <typename T>
AttentionRows<T> attention_rows(const RowsView& view) {
  return {static_cast<T*>(view.data), view.row_stride, view.batch_stride};
}

struct AttentionSizes {
  int query_length;
  int key_length;
  int heads;
  int kv_heads;
  int head_dim;
  float scale;
  Dropout dropout;
  float factor;               // of what dropout keeps
  const SequenceTile* tiles;  // of sequences that differ in length, one for each block x; null: all are alike

  // What a block works on, a tile of `rows` rows, whose sequence these sizes become. Without a table, blocks have the
  // tiles in their order, or the last one first.
  [[nodiscard]] __device__ BlockRows take_tile(int rows, bool is_last_first) {
    if (tiles == nullptr) {
      const unsigned tile = is_last_first ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
      return {static_cast<int>(blockIdx.z), 0, static_cast<int>(tile) * rows};
    }
    const SequenceTile tile = tiles[blockIdx.x];
    query_length = key_length = tile.length;
    dropout.key = key_of_sequence(dropout.key, static_cast<std::uint64_t>(tile.index));
    return {0, tile.begin, tile.first_row};
  }
  [[nodiscard]] __device__ int key_head(int head) const { return head * kv_heads / heads; }
  // How many keys query `row` sees.
  [[nodiscard]] __device__ int visible(int row) const { return key_length - query_length + row + 1; }
  // Of a row in [batch, heads, query_length]: what its random numbers are drawn by.
  [[nodiscard]] __device__ std::int64_t index_of(const BlockRows& block, int head, int row) const {
    return (std::int64_t{block.batch} * heads + head) * query_length + row;
  }
  // Of a row in what holds a number for each row and head, sequence after sequence.
  [[nodiscard]] __device__ std::int64_t place_of(const BlockRows& block, int head, int row) const {
    return std::int64_t{block.begin} * heads + index_of(block, head, row);
  }

  // Whether dropout keeps the probability of (row, key), `index` being the row's.
  [[nodiscard]] __device__ bool keeps(std::int64_t index, int key) const {
    const auto element = static_cast<std::uint64_t>(index * key_length + key);
    return keeps_word(philox(dropout.key, element / 4), element % 4);
  }
  // What it multiplies that probability by.
  [[nodiscard]] __device__ float dropout_factor(std::int64_t index, int key) const {
    return dropout.probability == 0 || keeps(index, key) ? factor : 0;
  }
  // keeps() of `key` in bit 0 and of the one after it in bit 1: one draw is mostly enough for both.
  [[nodiscard]] __device__ unsigned keeps_pair(std::int64_t index, int key) const {
    const auto element = static_cast<std::uint64_t>(index * key_length + key);
    const std::array<std::uint32_t, 4> words = philox(dropout.key, element / 4);
    const bool first = keeps_word(words, element % 4);
    const bool second =
        element % 4 < 3 ? keeps_word(words, element % 4 + 1) : keeps_word(philox(dropout.key, element / 4 + 1), 0);
    return static_cast<unsigned>(first) | static_cast<unsigned>(second) << 1;
  }

 private:
  // An index that is not known at compile time would put the words into memory.
  [[nodiscard]] __device__ bool keeps_word(const std::array<std::uint32_t, 4>& words, std::uint64_t i) const {
    const std::uint32_t lower = i % 2 == 0 ? words[0] : words[1];
    const std::uint32_t upper = i % 2 == 0 ? words[2] : words[3];
    return uniform_float(i < 2 ? lower : upper) >= dropout.probability;
  }
};
inline AttentionSizes attention_sizes(const AttentionShape& shape, const Dropout& dropout) {
  return {static_cast<int>(shape.query_length),
          static_cast<int>(shape.key_length),
          static_cast<int>(shape.heads),
          static_cast<int>(shape.kv_heads),
          static_cast<int>(shape.head_dim),
          shape.scale,
          dropout,
          1.0F / (1.0F - dropout.probability),
          nullptr};
}

template <typename T>
struct ForwardArgs {
  AttentionSizes sizes;
  AttentionRows<const T> q, k, v;
  AttentionRows<T> out;
  float* log_sum_exp;  // null: not wanted
};
template <typename T>
ForwardArgs<T> forward_args(const AttentionForward& args) {
  return {attention_sizes(args.shape, args.dropout),
          attention_rows<const T>(args.q),
          attention_rows<const T>(args.k),
          attention_rows<const T>(args.v),
          attention_rows<T>(args.out),
          static_cast<float*>(args.log_sum_exp.data())};
}

template <typename T>
struct BackwardArgs {
  AttentionSizes sizes;
  AttentionRows<const T> q, k, v, out, dout;
  const float* log_sum_exp;
  float* delta;  // the dot products of out and dout, in the places of log_sum_exp
  AttentionRows<T> dq, dk, dv;
};
template <typename T>
BackwardArgs<T> backward_args(const AttentionBackward& args, float* delta) {
  return {attention_sizes(args.shape, args.dropout),
          attention_rows<const T>(args.q),
          attention_rows<const T>(args.k),
          attention_rows<const T>(args.v),
          attention_rows<const T>(args.out),
          attention_rows<const T>(args.dout),
          static_cast<const float*>(args.log_sum_exp.data()),
          delta,
          attention_rows<T>(args.dq),
          attention_rows<T>(args.dk),
          attention_rows<T>(args.dv)};
}

// A block of `threads` for each `tile` rows of each head: of queries or of keys.
struct AttentionGrid {
  SequenceTables::Of of;
  int tile;
  unsigned threads;
};

// Calls f with whether tiles have to be small on the GPU in use, as a constant.
template <std::size_t kUsualBytes, typename F>
void with_tile_size(const F& f) {
  static_assert(kUsualBytes <= kMostSharedBytes && is_chosen_everywhere(kUsualBytes));
  if constexpr (has_small_tiles(kUsualBytes, kTuringSharedBytes)) {
    if (has_small_tiles(kUsualBytes, most_shared_memory())) {
      f(std::true_type{});
      return;
    }
  }
  f(std::false_type{});
}

// Whether a kernel for elements T with such tiles is ever launched on the card that it is being compiled for.
template <typename T, std::size_t kUsualBytes, bool kIsSmall>
inline constexpr bool kCanBeChosen = can_be_chosen(kCard, std::is_same_v<T, __nv_bfloat16>, kUsualBytes, kIsSmall);

// Launches one kernel after another of a call of attention.
class AttentionLaunch {
 public:
  template <typename Attention>
  AttentionLaunch(const Attention& attention, SequenceTables& tables, cudaStream_t stream)
      : shape_(attention.shape), lengths_(attention.lengths), tables_(tables), stream_(stream) {}

  template <typename Args>
  void operator()(const char* name, void (*kernel)(Args), const AttentionGrid& grid, std::size_t shared_bytes,
                  Args args) const {
    allow_shared_memory(name, kernel, shared_bytes);
    const bool is_of_keys = grid.of == SequenceTables::Of::kKeys;
    const auto heads = static_cast<unsigned>(is_of_keys ? shape_.kv_heads : shape_.heads);
    dim3 blocks;
    if (lengths_.empty()) {
      const std::int64_t length = is_of_keys ? shape_.key_length : shape_.query_length;
      blocks = dim3(static_cast<unsigned>(divided_up(length, grid.tile)), heads, static_cast<unsigned>(shape_.batch));
    } else {
      const SequenceTiles tiles = tables_.tiles(lengths_, grid.tile, grid.of);
      args.sizes.tiles = tiles.data;
      blocks = dim3(static_cast<unsigned>(tiles.count), heads, 1);
    }
    launch(name, kernel, {blocks, grid.threads, shared_bytes}, stream_, args);
  }

 private:
  const AttentionShape& shape_;
  SequenceLengths lengths_;
  SequenceTables& tables_;
  cudaStream_t stream_;
};

}  // namespace lockstep::cuda
