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

inline constexpr float kLog2E = 1.4426950408889634F;

// The block's queries, kBlocks times 16 a warp, and what its warps see of the keys. Queries after the last count for
// nothing.
template <int kBlocks>
struct QueryPlace {
  static constexpr int kQueries = kTileWarps * 16 * kBlocks;

  BlockRows block;
  int head;
  int kv_head;
  int rows;       // of the block
  int keys;       // that its last row sees
  int warp_row;   // the warp's first
  int warp_keys;  // that the warp's last row sees; 0: it has no rows

  // The longest rows first, so that no block is left over at the end. Makes `sizes` those of the block's sequence.
  __device__ explicit QueryPlace(AttentionSizes& sizes)
      : block(sizes.take_tile(kQueries, true)),
        head(static_cast<int>(blockIdx.y)),
        kv_head(sizes.key_head(head)),
        rows(min(kQueries, sizes.query_length - block.first)),
        keys(sizes.visible(block.first + rows - 1)),
        warp_row(block.first + warp_of_tile() * 16 * kBlocks),
        warp_keys(warp_row < sizes.query_length ? min(keys, sizes.visible(warp_row + 16 * kBlocks - 1)) : 0) {}

  // The lane's row of block i and half h.
  [[nodiscard]] __device__ int row(int i, int h) const { return warp_row + 16 * i + 8 * h + lane_row(); }
};

// Of a tile of scores, those of keys that lie after the query become -inf.
template <int kColumns, int kBlocks>
__device__ void mask_future(float (&scores)[kBlocks][kColumns / 8][4], const AttentionSizes& sizes,
                            const QueryPlace<kBlocks>& place, int first_key) {
  if (first_key + kColumns <= sizes.visible(place.warp_row)) {
    return;
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
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
template <int kColumns, bool kDropout, int kBlocks>
__device__ Kept<kBlocks> draw_kept(const AttentionSizes& sizes, const QueryPlace<kBlocks>& place, int first_key) {
  Kept<kBlocks> kept(!kDropout);
  if constexpr (kDropout) {
#pragma unroll 1
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::int64_t index = sizes.index_of(place.block, place.head, place.row(i, h));
          kept.bits[i] |= sizes.keeps_pair(index, first_key + 8 * j + lane_column()) << (4 * j + 2 * h);
        }
      }
    }
  }
  return kept;
}

inline constexpr std::int64_t kWidest = 128;

// Calls f with an element, the width that heads are padded to, and whether there is dropout.
template <typename F>
void with_variant(DType dtype, const AttentionShape& shape, const Dropout& dropout, const F& f) {
  const auto with_width = [&](auto element, auto has_dropout) {
    if (shape.head_dim <= 32) {
      f(element, std::integral_constant<int, 32>{}, has_dropout);
    } else if (shape.head_dim <= 64) {
      f(element, std::integral_constant<int, 64>{}, has_dropout);
    } else if (shape.head_dim <= 96) {
      f(element, std::integral_constant<int, 96>{}, has_dropout);
    } else {
      f(element, std::integral_constant<int, kWidest>{}, has_dropout);
    }
  };
  with_narrow_type(dtype, [&](auto element) {
    if (dropout.probability > 0) {
      with_width(element, std::true_type{});
    } else {
      with_width(element, std::false_type{});
    }
  });
}

}  // namespace lockstep::cuda::tensor_cores
