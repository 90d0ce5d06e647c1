// What the forward and the gradient kernels of attention_tensor.h share: the rows of a block, masks and dropout of a
// tile of scores.
//
// Each kernel keeps a tile of its own rows in shared memory, and goes over the tiles of the others, of which the next
// is on its way while one is worked on. Scores are in registers, in the layout in which the products give them, which
// is that of a first factor of the next product: nothing of the size of a score is ever stored.
#pragma once

#include <cmath>
#include <type_traits>

#include "ops/cuda/attention_arguments.cuh"
#include "ops/cuda/attention_tile.cuh"

namespace lockstep::cuda::tensor_cores {

using BF16 = __nv_bfloat16;

inline constexpr float kLog2E = 1.4426950408889634F;

// The rows of a block of kernels of queries: twice 16 a warp, so that what a warp reads of the other tile serves twice.
inline constexpr int kQueryBlocks = 2;
inline constexpr int kQueries = kTileWarps * 16 * kQueryBlocks;

// The block's queries, and what its warps see of the keys. Queries after the last count for nothing.
struct QueryPlace {
  int first_row;
  int head;
  int batch;
  int kv_head;
  int rows;       // of the block
  int keys;       // that its last row sees
  int warp_row;   // the warp's first
  int warp_keys;  // that the warp's last row sees; 0: it has no rows

  // The longest rows first, so that no block is left over at the end.
  __device__ explicit QueryPlace(const AttentionSizes& sizes)
      : first_row(static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries),
        head(static_cast<int>(blockIdx.y)),
        batch(static_cast<int>(blockIdx.z)),
        kv_head(sizes.key_head(head)),
        rows(min(kQueries, sizes.query_length - first_row)),
        keys(sizes.visible(first_row + rows - 1)),
        warp_row(first_row + warp_of_tile() * 16 * kQueryBlocks),
        warp_keys(warp_row < sizes.query_length ? min(keys, sizes.visible(warp_row + 16 * kQueryBlocks - 1)) : 0) {}

  // The lane's row of block i and half h.
  [[nodiscard]] __device__ int row(int i, int h) const { return warp_row + 16 * i + 8 * h + lane_row(); }
};

// Of a tile of scores, those of keys that lie after the query become -inf.
template <int kColumns>
__device__ void mask_future(float (&scores)[kQueryBlocks][kColumns / 8][4], const AttentionSizes& sizes,
                            const QueryPlace& place, int first_key) {
  if (first_key + kColumns <= sizes.visible(place.warp_row)) {
    return;
  }
#pragma unroll
  for (int i = 0; i < kQueryBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int seen = sizes.visible(place.row(i, h)) - first_key - lane_column();
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[i][j][2 * h + e];
          score = 8 * j + e < seen ? score : -INFINITY;
        }
      }
    }
  }
}

// Which of a tile's probabilities dropout keeps: bit 4 j + e of word i for [i][j][e]. They are drawn before there are
// scores, when registers are free, and few at a time.
template <int kBlocks>
struct Kept {
  unsigned bits[kBlocks];

  Kept() = default;
  __device__ explicit Kept(bool all) {
#pragma unroll
    for (unsigned& word : bits) {
      word = all ? ~0U : 0;
    }
  }
  [[nodiscard]] __device__ bool at(int i, int j, int e) const { return (bits[i] >> (4 * j + e) & 1) != 0; }
};

// Without dropout, all.
template <int kColumns, bool kDropout>
__device__ Kept<kQueryBlocks> draw_kept(const AttentionSizes& sizes, const QueryPlace& place, int first_key) {
  Kept<kQueryBlocks> kept(!kDropout);
  if constexpr (kDropout) {
#pragma unroll 1
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int i = 0; i < kQueryBlocks; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::int64_t index = sizes.index_of(place.batch, place.head, place.row(i, h));
          kept.bits[i] |= sizes.keeps_pair(index, first_key + 8 * j + lane_column()) << (4 * j + 2 * h);
        }
      }
    }
  }
  return kept;
}

inline constexpr std::int64_t kWidest = 128;

// Calls f with the width that heads are padded to, and with whether there is dropout.
template <typename F>
void with_variant(const AttentionShape& shape, const Dropout& dropout, const F& f) {
  const auto with_width = [&](auto has_dropout) {
    if (shape.head_dim <= 32) {
      f(std::integral_constant<int, 32>{}, has_dropout);
    } else if (shape.head_dim <= 64) {
      f(std::integral_constant<int, 64>{}, has_dropout);
    } else if (shape.head_dim <= 96) {
      f(std::integral_constant<int, 96>{}, has_dropout);
    } else {
      f(std::integral_constant<int, kWidest>{}, has_dropout);
    }
  };
  if (dropout.probability > 0) {
    with_width(std::true_type{});
  } else {
    with_width(std::false_type{});
  }
}

}  // namespace lockstep::cuda::tensor_cores
