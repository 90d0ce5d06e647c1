// One query alone, as generation has it, is served here, too: warps without rows do not compute.
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "ops/cuda/attention_scores.cuh"
#include "ops/cuda/attention_tensor.h"

namespace lockstep::cuda::tensor_cores {
namespace {

// Twice 16 rows a warp, so that what a warp reads of the other tile serves twice.
constexpr int kBlocks = 2;
constexpr int kQueries = QueryPlace<kBlocks>::kQueries;

template <typename T, int kDim, bool kIsSmall>
struct ForwardMemory {
  static constexpr int kKeys = kIsSmall ? 32 : 64;
  Tile<T, kDim, kQueries> q;
  Tile<T, kDim, kKeys> k;
  Tile<T, kDim, kKeys> v;
};
template <int kDim>
constexpr std::size_t kUsualBytes = sizeof(ForwardMemory<__half, kDim, false>);
static_assert(kUsualBytes<kWidest> <= kAmpereSharedBytes);
static_assert(sizeof(ForwardMemory<__half, kWidest, true>) <= kTuringSharedBytes);

// Of each of the lane's rows. `sum` is the lane's share, which the other three lanes' are added to at the end.
struct RunningSoftmax {
  float largest[kBlocks][2];
  float sum[kBlocks][2];
};

// scores become 2^(scale (score - largest)), `scale` being that of a power of two, or 0 where they are not kept; what
// was added up is brought to the new largest.
template <int kDim, int kColumns>
__device__ void exponentiate(float (&scores)[kBlocks][kColumns / 8][4], float scale, const Kept<kBlocks>& kept,
                             RunningSoftmax& softmax, float (&out)[kBlocks][kDim / 8][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
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
template <typename T, int kDim, bool kDropout, bool kIsSmall>
__device__ __forceinline__ void forward(const ForwardArgs<T>& args) {
  constexpr int kKeys = ForwardMemory<T, kDim, kIsSmall>::kKeys;
  auto& memory = *reinterpret_cast<ForwardMemory<T, kDim, kIsSmall>*>(dynamic_shared_memory());
  AttentionSizes sizes = args.sizes;
  const QueryPlace<kBlocks> place(sizes);
  const auto start_loading_keys = [&](Tile<T, kDim, kKeys>& tile, const AttentionRows<const T>& from, int first_key) {
    start_loading(tile, from.at(place.block, first_key, place.kv_head * sizes.head_dim), from.row_stride,
                  place.keys - first_key, sizes.head_dim);
  };
  start_loading(memory.q, args.q.at(place.block, place.block.first, place.head * sizes.head_dim), args.q.row_stride,
                place.rows, sizes.head_dim);
  start_loading_keys(memory.k, args.k, 0);

  float out[kBlocks][kDim / 8][4] = {};
  RunningSoftmax softmax;
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
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
    Factor<T, kBlocks, kKeys> p;
    if (is_seen) {
      const Kept<kBlocks> kept = draw_kept<kKeys, kDropout>(sizes, place, first_key);
      float scores[kBlocks][kKeys / 8][4];
      multiply_rows(memory.q, memory.k, scores);
      mask_future<kKeys>(scores, sizes, place, first_key);
      exponentiate<kDim, kKeys>(scores, sizes.scale * kLog2E, kept, softmax, out);
      p = Factor<T, kBlocks, kKeys>(scores);
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
  for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      softmax.sum[i][h] = sum_over_lanes<4>(softmax.sum[i][h]);
      const int row = place.row(i, h);
      if (args.log_sum_exp != nullptr && lane_column() == 0 && row < sizes.query_length) {
        args.log_sum_exp[sizes.place_of(place.block, place.head, row)] =
            softmax.largest[i][h] * sizes.scale + logf(softmax.sum[i][h]);
      }
    }
  }
  store_rows(
      out, [&](int i, int h) { return sizes.factor / softmax.sum[i][h]; }, memory.q,
      args.out.at(place.block, place.block.first, place.head * sizes.head_dim), args.out.row_stride, place.rows,
      sizes.head_dim);
}

template <typename T, int kDim, bool kDropout, bool kIsSmall>
__global__ void __launch_bounds__(kTileThreads) forward_kernel(const __grid_constant__ ForwardArgs<T> args) {
  if constexpr (kCanBeChosen<T, kUsualBytes<kDim>, kIsSmall>) {
    forward<T, kDim, kDropout, kIsSmall>(args);
  } else {
    __trap();
  }
}

bool takes(DType dtype, const AttentionShape& shape, std::initializer_list<RowsView> views) {
  const auto is_aligned = [](const RowsView& view) {
    return are_aligned({view.data}) && view.row_stride % kPack == 0 && view.batch_stride % kPack == 0;
  };
  return dtype != DType::kF32 && shape.head_dim % kPack == 0 && shape.head_dim <= kWidest && shape.scale > 0 &&
         std::ranges::all_of(views, is_aligned);
}

}  // namespace

bool take(const AttentionForward& args) { return takes(args.dtype, args.shape, {args.q, args.k, args.v, args.out}); }
bool take(const AttentionBackward& args) {
  return takes(args.dtype, args.shape, {args.q, args.k, args.v, args.out, args.dout, args.dq, args.dk, args.dv});
}

void attention_forward(const AttentionForward& args, const AttentionLaunch& launch_kernel) {
  with_variant(args.dtype, args.shape, args.dropout, [&](auto element, auto width, auto has_dropout) {
    with_tile_size<kUsualBytes<width>>([&](auto is_small) {
      using T = decltype(element);
      launch_kernel("attention", forward_kernel<T, width, has_dropout, is_small>,
                    {SequenceTables::Of::kQueries, kQueries, kTileThreads}, sizeof(ForwardMemory<T, width, is_small>),
                    forward_args<T>(args));
    });
  });
}

}  // namespace lockstep::cuda::tensor_cores
