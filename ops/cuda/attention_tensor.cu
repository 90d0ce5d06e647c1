// Each kernel keeps a tile of its own rows in shared memory, and goes over the tiles of the others, of which the next is
// on its way while one is worked on. Scores are in registers, in the layout in which the products give them, which is
// that of a first factor of the next product: nothing of the size of a score is ever stored.
//
// One query alone, as generation has it, is served here, too: warps without rows do not compute, and the time is that of
// reading the cache.
#include "ops/cuda/attention_tensor.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "ops/cuda/attention_arguments.cuh"
#include "ops/cuda/attention_tile.cuh"

namespace lockstep::cuda::tensor_cores {
namespace {

using BF16 = __nv_bfloat16;

constexpr float kLog2E = 1.4426950408889634F;

// The rows of a block of kernels of queries: twice 16 a warp, so that what a warp reads of the other tile serves twice.
constexpr int kQueryBlocks = 2;
constexpr int kQueries = kTileWarps * 16 * kQueryBlocks;

// The block's queries, and what its warps see of the keys. Queries after the last count for nothing.
struct QueryPlace {
  int first_row;
  int head;
  int batch;
  int kv_head;
  int rows;      // of the block
  int keys;      // that its last row sees
  int warp_row;  // the warp's first
  int warp_keys; // that the warp's last row sees; 0: it has no rows

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

  [[nodiscard]] __device__ bool at(int i, int j, int e) const { return (bits[i] >> (4 * j + e) & 1) != 0; }
};

// Without dropout, all.
template <int kColumns, bool kDropout>
__device__ Kept<kQueryBlocks> draw_kept(const AttentionSizes& sizes, const QueryPlace& place, int first_key) {
  Kept<kQueryBlocks> kept;
#pragma unroll
  for (int i = 0; i < kQueryBlocks; ++i) {
    kept.bits[i] = kDropout ? 0 : ~0U;
  }
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

template <int kDim>
struct ForwardMemory {
  static constexpr int kKeys = 64;
  Tile<kDim, kQueries> q;
  Tile<kDim, kKeys> k;
  Tile<kDim, kKeys> v;
};

// Of each of the lane's rows. `sum` is the lane's share, which the other three lanes' are added to at the end.
struct RunningSoftmax {
  float largest[kQueryBlocks][2];
  float sum[kQueryBlocks][2];
};

// scores become 2^(scale (score - largest)), `scale` being that of a power of two, or 0 where they are not kept; what was
// added up is brought to the new largest.
template <int kDim, int kColumns>
__device__ void exponentiate(float (&scores)[kQueryBlocks][kColumns / 8][4], float scale,
                             const Kept<kQueryBlocks>& kept, RunningSoftmax& softmax,
                             float (&out)[kQueryBlocks][kDim / 8][4]) {
#pragma unroll
  for (int i = 0; i < kQueryBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float before = softmax.largest[i][h];
      float largest = before;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        largest = fmaxf(largest, fmaxf(scores[i][j][2 * h], scores[i][j][2 * h + 1]));
      }
      largest = max_over_lanes<4>(largest);
      const float shrink = power_of_two((before - largest) * scale);
      const float offset = -largest * scale;
      float sum = softmax.sum[i][h] * shrink;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          const float power = power_of_two(fmaf(scores[i][j][e], scale, offset));
          sum += power;
          scores[i][j][e] = kept.at(i, j, e) ? power : 0;
        }
      }
      softmax.largest[i][h] = largest;
      softmax.sum[i][h] = sum;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        out[i][n][2 * h] *= shrink;
        out[i][n][2 * h + 1] *= shrink;
      }
    }
  }
}

// A block for kQueries queries of a head.
template <int kDim, bool kDropout>
__global__ void __launch_bounds__(kTileThreads) forward_kernel(const __grid_constant__ ForwardArgs<BF16> args) {
  constexpr int kKeys = ForwardMemory<kDim>::kKeys;
  auto& memory = *reinterpret_cast<ForwardMemory<kDim>*>(dynamic_shared_memory());
  const AttentionSizes& sizes = args.sizes;
  const QueryPlace place(sizes);
  const auto start_loading_keys = [&](Tile<kDim, kKeys>& tile, const AttentionRows<const BF16>& from, int first_key) {
    start_loading(tile, from.at(place.batch, first_key, place.kv_head * sizes.head_dim), from.row_stride,
                  place.keys - first_key, sizes.head_dim);
  };
  start_loading(memory.q, args.q.at(place.batch, place.first_row, place.head * sizes.head_dim), args.q.row_stride,
                place.rows, sizes.head_dim);
  start_loading_keys(memory.k, args.k, 0);

  float out[kQueryBlocks][kDim / 8][4] = {};
  RunningSoftmax softmax;
#pragma unroll
  for (int i = 0; i < kQueryBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      softmax.largest[i][h] = -INFINITY;
      softmax.sum[i][h] = 0;
    }
  }
  for (int first_key = 0; first_key < place.keys; first_key += kKeys) {
    const bool is_seen = first_key < place.warp_keys;
    wait_for_copies();
    __syncthreads();  // the keys are there, and all are done with the values before
    start_loading_keys(memory.v, args.v, first_key);
    Factor<kQueryBlocks, kKeys> p;
    if (is_seen) {
      const Kept<kQueryBlocks> kept = draw_kept<kKeys, kDropout>(sizes, place, first_key);
      float scores[kQueryBlocks][kKeys / 8][4];
      multiply_rows<kDim>(memory.q, memory.k, scores);
      mask_future<kKeys>(scores, sizes, place, first_key);
      exponentiate<kDim, kKeys>(scores, sizes.scale * kLog2E, kept, softmax, out);
      p = Factor<kQueryBlocks, kKeys>(scores);
    }
    wait_for_copies();
    __syncthreads();  // the values are there, and all are done with the keys
    if (first_key + kKeys < place.keys) {
      start_loading_keys(memory.k, args.k, first_key + kKeys);
    }
    if (is_seen) {
      add_product(p, memory.v, out);
    }
  }

#pragma unroll
  for (int i = 0; i < kQueryBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      softmax.sum[i][h] = sum_over_lanes<4>(softmax.sum[i][h]);
      const int row = place.row(i, h);
      if (args.log_sum_exp != nullptr && lane_column() == 0 && row < sizes.query_length) {
        args.log_sum_exp[sizes.index_of(place.batch, place.head, row)] =
            softmax.largest[i][h] * sizes.scale + logf(softmax.sum[i][h]);
      }
    }
  }
  store_rows<kDim>(out, [&](int i, int h) { return sizes.factor / softmax.sum[i][h]; }, memory.q,
                   args.out.at(place.batch, place.first_row, place.head * sizes.head_dim), args.out.row_stride,
                   place.rows, sizes.head_dim);
}

// With S = scale q k^T, P = exp(S - log_sum_exp) and m what dropout multiplies by:
//   dv = (m P)^T dout      dS = P (m dout v^T - delta)      dq = scale dS k      dk = scale dS^T q

// How many rows of the other tile a gradient's kernel works on at a time.
constexpr int kStep = 32;

template <int kDim>
struct QueryGradientMemory {
  Tile<kDim, kQueries> q;
  Tile<kDim, kQueries> dout;
  Tile<kDim, kStep> k[2];
  Tile<kDim, kStep> v[2];
};

// A block for kQueries queries of a head: dq.
template <int kDim, bool kDropout>
__global__ void __launch_bounds__(kTileThreads) query_gradient_kernel(const __grid_constant__ BackwardArgs<BF16> args) {
  auto& memory = *reinterpret_cast<QueryGradientMemory<kDim>*>(dynamic_shared_memory());
  const AttentionSizes& sizes = args.sizes;
  const QueryPlace place(sizes);
  const auto start_loading_queries = [&](Tile<kDim, kQueries>& tile, const AttentionRows<const BF16>& from) {
    start_loading(tile, from.at(place.batch, place.first_row, place.head * sizes.head_dim), from.row_stride, place.rows,
                  sizes.head_dim);
  };
  const auto start_loading_keys = [&](int first_key, int into) {
    const int column = place.kv_head * sizes.head_dim;
    start_loading(memory.k[into], args.k.at(place.batch, first_key, column), args.k.row_stride, place.keys - first_key,
                  sizes.head_dim);
    start_loading(memory.v[into], args.v.at(place.batch, first_key, column), args.v.row_stride, place.keys - first_key,
                  sizes.head_dim);
  };
  start_loading_queries(memory.q, args.q);
  start_loading_queries(memory.dout, args.dout);
  start_loading_keys(0, 0);

  const float scale = sizes.scale * kLog2E;
  const float factor = kDropout ? sizes.factor : 1;
  float offset[kQueryBlocks][2];  // -log_sum_exp, of base 2
  float delta[kQueryBlocks][2];
#pragma unroll
  for (int i = 0; i < kQueryBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = place.row(i, h);
      const bool is_row = row < sizes.query_length;
      const std::int64_t index = sizes.index_of(place.batch, place.head, row);
      offset[i][h] = is_row ? args.log_sum_exp[index] * -kLog2E : 0;
      delta[i][h] = is_row ? args.delta[index] : 0;
    }
  }
  float dq[kQueryBlocks][kDim / 8][4] = {};
  int current = 0;
  for (int first_key = 0; first_key < place.keys; first_key += kStep, current ^= 1) {
    wait_for_copies();
    __syncthreads();  // these keys are there, and all are done with those before
    if (first_key + kStep < place.keys) {
      start_loading_keys(first_key + kStep, current ^ 1);
    }
    if (first_key >= place.warp_keys) {
      continue;
    }
    const Kept<kQueryBlocks> kept = draw_kept<kStep, kDropout>(sizes, place, first_key);
    float p[kQueryBlocks][kStep / 8][4];
    float ds[kQueryBlocks][kStep / 8][4];
    multiply_rows<kDim>(memory.q, memory.k[current], p);
    multiply_rows<kDim>(memory.dout, memory.v[current], ds);
    mask_future<kStep>(p, sizes, place, first_key);
#pragma unroll
    for (int i = 0; i < kQueryBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float probability = power_of_two(fmaf(p[i][j][e], scale, offset[i][e / 2]));
          const float m = kept.at(i, j, e) ? factor : 0;
          ds[i][j][e] = probability * (m * ds[i][j][e] - delta[i][e / 2]);
        }
      }
    }
    add_product(Factor<kQueryBlocks, kStep>(ds), memory.k[current], dq);
  }
  store_rows<kDim>(dq, [&](int, int) { return sizes.scale; }, memory.q,
                   args.dq.at(place.batch, place.first_row, place.head * sizes.head_dim), args.dq.row_stride,
                   place.rows, sizes.head_dim);
}

// How many times 16 keys a warp has: two gradients have to fit into its registers.
template <int kDim>
constexpr int kKeyBlocks = kDim <= 64 ? 2 : 1;

template <int kDim>
struct KeyGradientMemory {
  static constexpr int kKeys = kTileWarps * 16 * kKeyBlocks<kDim>;
  Tile<kDim, kKeys> k;
  Tile<kDim, kKeys> v;
  Tile<kDim, kStep> q[2];
  Tile<kDim, kStep> dout[2];
  float log_sum_exp[2][kStep];
  float delta[2][kStep];
};

// Of a tile of transposed scores, those of queries that lie before the key become -inf.
template <int kBlocks>
__device__ void mask_past(float (&scores)[kBlocks][kStep / 8][4], const AttentionSizes& sizes, int warp_key,
                          int first_row) {
  if (warp_key + 16 * kBlocks <= sizes.visible(first_row)) {
    return;
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int key = warp_key + 16 * i + 8 * h + lane_row();
      const int hidden = key - sizes.visible(first_row + lane_column());  // row first_row + n sees it from n > hidden on
#pragma unroll
      for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[i][j][2 * h + e];
          score = 8 * j + e > hidden ? score : -INFINITY;
        }
      }
    }
  }
}

// draw_kept() of a tile of transposed scores, `index` being its first row's.
template <int kBlocks, bool kDropout>
__device__ Kept<kBlocks> draw_kept_transposed(const AttentionSizes& sizes, std::int64_t index, int warp_key) {
  Kept<kBlocks> kept;
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    kept.bits[i] = kDropout ? 0 : ~0U;
  }
  if constexpr (kDropout) {
#pragma unroll 1
    for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int key = warp_key + 16 * i + 8 * (e / 2) + lane_row();
          const bool is_kept = sizes.keeps(index + 8 * j + lane_column() + e % 2, key);
          kept.bits[i] |= static_cast<unsigned>(is_kept) << (4 * j + e);
        }
      }
    }
  }
  return kept;
}

// A block for some keys of a key head: dk and dv, over all queries of all query heads that use it, in order. Scores are
// transposed here: their rows are keys.
template <int kDim, bool kDropout>
__global__ void __launch_bounds__(kTileThreads) key_gradient_kernel(const __grid_constant__ BackwardArgs<BF16> args) {
  constexpr int kBlocks = kKeyBlocks<kDim>;
  constexpr int kKeys = KeyGradientMemory<kDim>::kKeys;
  auto& memory = *reinterpret_cast<KeyGradientMemory<kDim>*>(dynamic_shared_memory());
  const AttentionSizes& sizes = args.sizes;
  const int first_key = static_cast<int>(blockIdx.x) * kKeys;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z);
  const int keys = min(kKeys, sizes.key_length - first_key);
  const int warp_key = first_key + warp_of_tile() * 16 * kBlocks;
  const int key_column = kv_head * sizes.head_dim;

  // Tiles of queries: of each head in turn, from the first that sees a key of the block.
  const int first_tile = max(0, first_key - (sizes.key_length - sizes.query_length)) / kStep;
  const int tiles_per_head = (sizes.query_length + kStep - 1) / kStep - first_tile;
  const int group = sizes.heads / sizes.kv_heads;
  const int tiles = group * tiles_per_head;
  const auto head_of = [&](int tile) { return kv_head * group + tile / tiles_per_head; };
  const auto first_row_of = [&](int tile) { return (first_tile + tile % tiles_per_head) * kStep; };
  const auto start_loading_queries = [&](int tile, int into) {
    const int first_row = first_row_of(tile);
    const int rows = sizes.query_length - first_row;
    const int column = head_of(tile) * sizes.head_dim;
    start_loading(memory.q[into], args.q.at(batch, first_row, column), args.q.row_stride, rows, sizes.head_dim);
    start_loading(memory.dout[into], args.dout.at(batch, first_row, column), args.dout.row_stride, rows,
                  sizes.head_dim);
    // Rows after the last are zero in everything, so that they add nothing.
    const std::int64_t index = sizes.index_of(batch, head_of(tile), first_row);
    if (const int row = static_cast<int>(threadIdx.x); row < kStep) {
      start_copy<4>(&memory.log_sum_exp[into][row], args.log_sum_exp + index + row, row < rows);
      start_copy<4>(&memory.delta[into][row], args.delta + index + row, row < rows);
    }
  };
  start_loading(memory.k, args.k.at(batch, first_key, key_column), args.k.row_stride, keys, sizes.head_dim);
  start_loading(memory.v, args.v.at(batch, first_key, key_column), args.v.row_stride, keys, sizes.head_dim);
  start_loading_queries(0, 0);

  const float scale = sizes.scale * kLog2E;
  const float factor = kDropout ? sizes.factor : 1;
  float dk[kBlocks][kDim / 8][4] = {};
  float dv[kBlocks][kDim / 8][4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const int current = tile % 2;
    const int first_row = first_row_of(tile);
    wait_for_copies();
    __syncthreads();  // these queries are there, and all are done with those before
    if (tile + 1 < tiles) {
      start_loading_queries(tile + 1, current ^ 1);
    }
    if (warp_key >= min(sizes.key_length, sizes.visible(first_row + kStep - 1))) {
      continue;
    }
    const auto kept =
        draw_kept_transposed<kBlocks, kDropout>(sizes, sizes.index_of(batch, head_of(tile), first_row), warp_key);
    float p[kBlocks][kStep / 8][4];
    float ds[kBlocks][kStep / 8][4];
    multiply_rows<kDim>(memory.k, memory.q[current], p);
    multiply_rows<kDim>(memory.v, memory.dout[current], ds);
    mask_past<kBlocks>(p, sizes, warp_key, first_row);
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = 8 * j + lane_column() + side;
        const float offset = memory.log_sum_exp[current][column] * -kLog2E;
        const float delta = memory.delta[current][column];
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
          for (int e = side; e < 4; e += 2) {
            const float probability = power_of_two(fmaf(p[i][j][e], scale, offset));
            const float m = kept.at(i, j, e) ? factor : 0;
            p[i][j][e] = kept.at(i, j, e) ? probability : 0;
            ds[i][j][e] = probability * (m * ds[i][j][e] - delta);
          }
        }
      }
    }
    add_product(Factor<kBlocks, kStep>(p), memory.dout[current], dv);
    add_product(Factor<kBlocks, kStep>(ds), memory.q[current], dk);
  }
  store_rows<kDim>(dk, [&](int, int) { return sizes.scale; }, memory.k, args.dk.at(batch, first_key, key_column),
                   args.dk.row_stride, keys, sizes.head_dim);
  store_rows<kDim>(dv, [&](int, int) { return sizes.factor; }, memory.v, args.dv.at(batch, first_key, key_column),
                   args.dv.row_stride, keys, sizes.head_dim);
}

constexpr std::int64_t kWidest = 128;

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

bool takes(DType dtype, const AttentionShape& shape, std::initializer_list<RowsView> views) {
  const auto is_aligned = [](const RowsView& view) {
    return are_aligned({view.data}) && view.row_stride % kPack == 0 && view.batch_stride % kPack == 0;
  };
  return dtype == DType::kBF16 && shape.head_dim % kPack == 0 && shape.head_dim <= kWidest && shape.scale > 0 &&
         std::ranges::all_of(views, is_aligned);
}

}  // namespace

bool take(const AttentionForward& args) { return takes(args.dtype, args.shape, {args.q, args.k, args.v, args.out}); }
bool take(const AttentionBackward& args) {
  return takes(args.dtype, args.shape, {args.q, args.k, args.v, args.out, args.dout, args.dq, args.dk, args.dv});
}

void attention_forward(const AttentionForward& args, cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  with_variant(shape, args.dropout, [&](auto width, auto has_dropout) {
    launch_attention("attention", forward_kernel<width, has_dropout>,
                     {shape.query_length, kQueries, shape.heads, shape.batch, kTileThreads},
                     sizeof(ForwardMemory<width>), stream, forward_args<BF16>(args));
  });
}

void attention_backward(const AttentionBackward& args, float* delta, cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  const BackwardArgs<BF16> kernel_args = backward_args<BF16>(args, delta);
  with_variant(shape, args.dropout, [&](auto width, auto has_dropout) {
    launch_attention("attention's gradient", key_gradient_kernel<width, has_dropout>,
                     {shape.key_length, KeyGradientMemory<width>::kKeys, shape.kv_heads, shape.batch, kTileThreads},
                     sizeof(KeyGradientMemory<width>), stream, kernel_args);
    launch_attention("attention's gradient", query_gradient_kernel<width, has_dropout>,
                     {shape.query_length, kQueries, shape.heads, shape.batch, kTileThreads},
                     sizeof(QueryGradientMemory<width>), stream, kernel_args);
  });
}

}  // namespace lockstep::cuda::tensor_cores
