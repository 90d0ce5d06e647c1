// With S = scale q k^T, P = exp(S - log_sum_exp) and m what dropout multiplies by:
//   dv = (m P)^T dout      dS = P (m dout v^T - delta)      dq = scale dS k      dk = scale dS^T q
#include "ops/cuda/attention_scores.cuh"
#include "ops/cuda/attention_tensor.h"

namespace lockstep::cuda::tensor_cores {
namespace {

// Usually twice 16 queries a warp, so that what a warp reads of the other tile serves twice; keys so many at a time. A
// second tile of values would be too much.
template <typename T, int kDim, bool kIsSmall>
struct QueryGradientMemory {
  static constexpr int kBlocks = kIsSmall ? 1 : 2;
  static constexpr int kQueries = QueryPlace<kBlocks>::kQueries;
  static constexpr int kStep = 32;
  Tile<T, kDim, kQueries> q;
  Tile<T, kDim, kQueries> dout;
  Tile<T, kDim, kStep> k[2];
  Tile<T, kDim, kStep> v;
};
template <int kDim>
constexpr std::size_t kUsualQueryBytes = sizeof(QueryGradientMemory<__half, kDim, false>);
static_assert(kUsualQueryBytes<kWidest> <= kAmpereSharedBytes);
static_assert(sizeof(QueryGradientMemory<__half, kWidest, true>) <= kTuringSharedBytes);

// A block for kQueries queries of a head: dq.
template <typename T, int kDim, bool kDropout, bool kIsSmall>
__device__ __forceinline__ void query_gradient(const BackwardArgs<T>& args) {
  using Memory = QueryGradientMemory<T, kDim, kIsSmall>;
  constexpr int kBlocks = Memory::kBlocks;
  constexpr int kQueries = Memory::kQueries;
  constexpr int kStep = Memory::kStep;
  auto& memory = *reinterpret_cast<Memory*>(dynamic_shared_memory());
  AttentionSizes sizes = args.sizes;
  const QueryPlace<kBlocks> place(sizes);
  const auto start_loading_queries = [&](Tile<T, kDim, kQueries>& tile, const AttentionRows<const T>& from) {
    start_loading(tile, from.at(place.block, place.block.first, place.head * sizes.head_dim), from.row_stride, place.rows,
                  sizes.head_dim);
  };
  const auto start_loading_keys = [&](Tile<T, kDim, kStep>& tile, const AttentionRows<const T>& from, int first_key) {
    start_loading(tile, from.at(place.block, first_key, place.kv_head * sizes.head_dim), from.row_stride,
                  place.keys - first_key, sizes.head_dim);
  };
  start_loading_queries(memory.q, args.q);
  start_loading_queries(memory.dout, args.dout);
  start_loading_keys(memory.k[0], args.k, 0);

  const float scale = sizes.scale * kLog2E;
  const float factor = kDropout ? sizes.factor : 1;
  float offset[kBlocks][2];  // -log_sum_exp, of base 2
  float delta[kBlocks][2];
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = place.row(i, h);
      const bool is_row = row < sizes.query_length;
      const std::int64_t index = sizes.place_of(place.block, place.head, row);
      offset[i][h] = is_row ? args.log_sum_exp[index] * -kLog2E : 0;
      delta[i][h] = is_row ? args.delta[index] : 0;
    }
  }
  float dq[kBlocks][kDim / 8][4] = {};
  int current = 0;
  for (int first_key = 0; first_key < place.keys; first_key += kStep, current ^= 1) {
    const bool is_seen = first_key < place.warp_keys;
    wait_for_copies();
    __syncthreads();  // the keys are there, and all are done with keys and values before
    start_loading_keys(memory.v, args.v, first_key);
    if (first_key + kStep < place.keys) {
      start_loading_keys(memory.k[current ^ 1], args.k, first_key + kStep);
    }
    Kept<kBlocks> kept;
    float p[kBlocks][kStep / 8][4];
    if (is_seen) {
      kept = draw_kept<kStep, kDropout>(sizes, place, first_key);
      multiply_rows(memory.q, memory.k[current], p);
      mask_future<kStep>(p, sizes, place, first_key);
    }
    wait_for_copies();
    __syncthreads();  // the values are there
    if (!is_seen) {
      continue;
    }
    float ds[kBlocks][kStep / 8][4];
    multiply_rows(memory.dout, memory.v, ds);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
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
    add_product(Factor<T, kBlocks, kStep>(ds), memory.k[current], dq);
  }
  store_rows(
      dq, [&](int, int) { return sizes.scale; }, memory.q,
      args.dq.at(place.block, place.block.first, place.head * sizes.head_dim), args.dq.row_stride, place.rows,
      sizes.head_dim);
}

template <typename T, int kDim, bool kDropout, bool kIsSmall>
__global__ void __launch_bounds__(kTileThreads) query_gradient_kernel(const __grid_constant__ BackwardArgs<T> args) {
  if constexpr (kCanBeChosen<T, kUsualQueryBytes<kDim>, kIsSmall>) {
    query_gradient<T, kDim, kDropout, kIsSmall>(args);
  } else {
    __trap();
  }
}

// As often 16 keys a warp as leave two gradients room in its registers; queries so many at a time.
template <typename T, int kDim, bool kIsSmall>
struct KeyGradientMemory {
  static constexpr int kBlocks = kDim <= 64 ? 2 : 1;
  static constexpr int kKeys = kTileWarps * 16 * kBlocks;
  static constexpr int kStep = kIsSmall ? 16 : 32;
  Tile<T, kDim, kKeys> k;
  Tile<T, kDim, kKeys> v;
  Tile<T, kDim, kStep> q[2];
  Tile<T, kDim, kStep> dout[2];
  float log_sum_exp[2][kStep];
  float delta[2][kStep];
};
template <int kDim>
constexpr std::size_t kUsualKeyBytes = sizeof(KeyGradientMemory<__half, kDim, false>);
static_assert(kUsualKeyBytes<kWidest> <= kAmpereSharedBytes);
static_assert(sizeof(KeyGradientMemory<__half, kWidest, true>) <= kTuringSharedBytes);

// Of a tile of transposed scores, those of queries that lie before the key become -inf.
template <int kColumns, int kBlocks>
__device__ void mask_past(float (&scores)[kBlocks][kColumns / 8][4], const AttentionSizes& sizes, int warp_key,
                          int first_row) {
  if (warp_key + 16 * kBlocks <= sizes.visible(first_row)) {
    return;
  }
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int key = warp_key + 16 * i + 8 * h + lane_row();
      // As many rows from the lane's first on do not see the key, and one more.
      const int hidden = key - sizes.visible(first_row + lane_column());
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
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
template <int kBlocks, int kColumns, bool kDropout>
__device__ Kept<kBlocks> draw_kept_transposed(const AttentionSizes& sizes, std::int64_t index, int warp_key) {
  Kept<kBlocks> kept(!kDropout);
  if constexpr (kDropout) {
#pragma unroll 1
    for (int j = 0; j < kColumns / 8; ++j) {
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
template <typename T, int kDim, bool kDropout, bool kIsSmall>
__device__ __forceinline__ void key_gradient(const BackwardArgs<T>& args) {
  using Memory = KeyGradientMemory<T, kDim, kIsSmall>;
  constexpr int kBlocks = Memory::kBlocks;
  constexpr int kKeys = Memory::kKeys;
  constexpr int kStep = Memory::kStep;
  auto& memory = *reinterpret_cast<Memory*>(dynamic_shared_memory());
  AttentionSizes sizes = args.sizes;
  const BlockRows block = sizes.take_tile(kKeys, false);
  const int first_key = block.first;
  const int kv_head = static_cast<int>(blockIdx.y);
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
    start_loading(memory.q[into], args.q.at(block, first_row, column), args.q.row_stride, rows, sizes.head_dim);
    start_loading(memory.dout[into], args.dout.at(block, first_row, column), args.dout.row_stride, rows,
                  sizes.head_dim);
    // Rows after the last are zero in everything, so that they add nothing.
    const std::int64_t index = sizes.place_of(block, head_of(tile), first_row);
    if (const int row = static_cast<int>(threadIdx.x); row < kStep) {
      start_copy<4>(&memory.log_sum_exp[into][row], args.log_sum_exp + index + row, row < rows);
      start_copy<4>(&memory.delta[into][row], args.delta + index + row, row < rows);
    }
  };
  start_loading(memory.k, args.k.at(block, first_key, key_column), args.k.row_stride, keys, sizes.head_dim);
  start_loading(memory.v, args.v.at(block, first_key, key_column), args.v.row_stride, keys, sizes.head_dim);
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
    const Kept<kBlocks> kept = draw_kept_transposed<kBlocks, kStep, kDropout>(
        sizes, sizes.index_of(block, head_of(tile), first_row), warp_key);
    float p[kBlocks][kStep / 8][4];
    float ds[kBlocks][kStep / 8][4];
    multiply_rows(memory.k, memory.q[current], p);
    multiply_rows(memory.v, memory.dout[current], ds);
    mask_past<kStep>(p, sizes, warp_key, first_row);
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
    add_product(Factor<T, kBlocks, kStep>(p), memory.dout[current], dv);
    add_product(Factor<T, kBlocks, kStep>(ds), memory.q[current], dk);
  }
  store_rows(
      dk, [&](int, int) { return sizes.scale; }, memory.k, args.dk.at(block, first_key, key_column), args.dk.row_stride,
      keys, sizes.head_dim);
  store_rows(
      dv, [&](int, int) { return sizes.factor; }, memory.v, args.dv.at(block, first_key, key_column),
      args.dv.row_stride, keys, sizes.head_dim);
}

template <typename T, int kDim, bool kDropout, bool kIsSmall>
__global__ void __launch_bounds__(kTileThreads) key_gradient_kernel(const __grid_constant__ BackwardArgs<T> args) {
  if constexpr (kCanBeChosen<T, kUsualKeyBytes<kDim>, kIsSmall>) {
    key_gradient<T, kDim, kDropout, kIsSmall>(args);
  } else {
    __trap();
  }
}

}  // namespace

void attention_backward(const AttentionBackward& args, float* delta, const AttentionLaunch& launch_kernel) {
  with_variant(args.dtype, args.shape, args.dropout, [&](auto element, auto width, auto has_dropout) {
    using T = decltype(element);
    const BackwardArgs<T> kernel_args = backward_args<T>(args, delta);
    with_tile_size<kUsualKeyBytes<width>>([&](auto is_small) {
      using Memory = KeyGradientMemory<T, width, is_small>;
      launch_kernel("attention's gradient", key_gradient_kernel<T, width, has_dropout, is_small>,
                    {SequenceTables::Of::kKeys, Memory::kKeys, kTileThreads}, sizeof(Memory), kernel_args);
    });
    with_tile_size<kUsualQueryBytes<width>>([&](auto is_small) {
      using Memory = QueryGradientMemory<T, width, is_small>;
      launch_kernel("attention's gradient", query_gradient_kernel<T, width, has_dropout, is_small>,
                    {SequenceTables::Of::kQueries, Memory::kQueries, kTileThreads}, sizeof(Memory), kernel_args);
    });
  });
}

}  // namespace lockstep::cuda::tensor_cores
