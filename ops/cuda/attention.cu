#include "ops/cuda/attention.h"

#include <cmath>

#include "ops/cuda/attention_ordinary.cuh"
#include "ops/cuda/attention_tensor.h"

namespace lockstep::cuda {
namespace {

using namespace ordinary_cores;

template <int kDim, bool kIsSmall>
struct ForwardMemory {
  static constexpr int kQueries = kDim == 256 ? 32 : 64;
  static constexpr int kKeys = kIsSmall ? kQueries / 2 : kQueries;
  Tile<kDim, kQueries> q;
  Tile<kDim, kKeys> kv;  // keys, then values
  Weights<kQueries, kKeys> p;
};
template <int kDim>
constexpr std::size_t kUsualForwardBytes = sizeof(ForwardMemory<kDim, false>);
static_assert(kUsualForwardBytes<128> <= kAmpereSharedBytes && kUsualForwardBytes<256> <= kAmpereSharedBytes);
static_assert(sizeof(ForwardMemory<128, true>) <= kTuringSharedBytes);
static_assert(sizeof(ForwardMemory<256, true>) <= kTuringSharedBytes);

// A block for kQueries queries of a head; the longest rows first, so that no block is left over at the end.
template <typename T, int kDim, bool kIsSmall>
__device__ __forceinline__ void forward(const ForwardArgs<T>& args) {
  using Memory = ForwardMemory<kDim, kIsSmall>;
  constexpr int kQueries = Memory::kQueries;
  constexpr int kKeys = Memory::kKeys;
  auto& memory = *reinterpret_cast<Memory*>(dynamic_shared_memory());
  AttentionSizes shape = args.sizes;
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
  const BlockRows block = shape.take_tile(kQueries, true);
  const int first_row = block.first;
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = shape.key_head(head);
  const int rows = min(kQueries, shape.query_length - first_row);
  memory.q.load(args.q.at(block, first_row, head * shape.head_dim), args.q.row_stride, rows, shape.head_dim);

  constexpr int kOwnRows = kQueries / kSide;
  float out[kOwnRows][kDim / kSide] = {};
  float largest[kOwnRows];
  float sum[kOwnRows];
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    largest[i] = -INFINITY;
    sum[i] = 0;
  }
  const int keys = min(shape.key_length, shape.visible(first_row + rows - 1));
  for (int first_key = 0; first_key < keys; first_key += kKeys) {
    const int valid = min(kKeys, keys - first_key);
    __syncthreads();
    memory.kv.load(args.k.at(block, first_key, kv_head * shape.head_dim), args.k.row_stride, valid, shape.head_dim);
    __syncthreads();
    float p[kOwnRows][kKeys / kSide];
    dot_rows(memory.q, memory.kv, p);
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = first_row + y + kSide * i;
      float tile_largest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kKeys / kSide; ++j) {
        const int key = first_key + x + kSide * j;
        p[i][j] = key < shape.visible(row) && key < shape.key_length ? p[i][j] * shape.scale : -INFINITY;
        tile_largest = fmaxf(tile_largest, p[i][j]);
      }
      const float now = fmaxf(largest[i], max_over_lanes<kSide>(tile_largest));
      const float shrink = now == -INFINITY ? 1 : expf(largest[i] - now);
      float tile_sum = 0;
#pragma unroll
      for (int j = 0; j < kKeys / kSide; ++j) {
        p[i][j] = p[i][j] == -INFINITY ? 0 : expf(p[i][j] - now);  // NaN is to be seen
        tile_sum += p[i][j];
        if (shape.dropout.probability > 0) {
          p[i][j] *= shape.dropout_factor(shape.index_of(block, head, row), first_key + x + kSide * j);
        }
      }
      sum[i] = sum[i] * shrink + sum_over_lanes<kSide>(tile_sum);
      largest[i] = now;
#pragma unroll
      for (int c = 0; c < kDim / kSide; ++c) {
        out[i][c] *= shrink;
      }
    }
    memory.p.store(p);
    __syncthreads();
    memory.kv.load(args.v.at(block, first_key, kv_head * shape.head_dim), args.v.row_stride, valid, shape.head_dim);
    __syncthreads();
    add_weighted(memory.p, memory.kv, out);
  }
#pragma unroll
  for (int i = 0; i < kOwnRows; ++i) {
    const int row = first_row + y + kSide * i;
    const float inverse = 1.0F / sum[i];
#pragma unroll
    for (int c = 0; c < kDim / kSide; ++c) {
      out[i][c] *= inverse;
    }
    if (x == 0 && args.log_sum_exp != nullptr && row < shape.query_length) {
      args.log_sum_exp[shape.place_of(block, head, row)] = largest[i] + logf(sum[i]);
    }
  }
  store_rows<kDim, kQueries>(out, args.out.at(block, first_row, head * shape.head_dim), args.out.row_stride, rows,
                             shape.head_dim);
}

template <typename T, int kDim, bool kIsSmall>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ ForwardArgs<T> args) {
  if constexpr (kCanBeChosen<T, kUsualForwardBytes<kDim>, kIsSmall>) {
    forward<T, kDim, kIsSmall>(args);
  } else {
    __trap();
  }
}

}  // namespace

void attention_forward(const AttentionForward& args, SequenceTables& tables, cudaStream_t stream) {
  if (args.shape.batch * args.shape.query_length == 0) {
    return;
  }
  const AttentionLaunch launch_kernel(args, tables, stream);
  if (tensor_cores::take(args)) {
    tensor_cores::attention_forward(args, launch_kernel);
    return;
  }
  with_variant(args.dtype, args.shape.head_dim, [&](auto element, auto width) {
    with_tile_size<kUsualForwardBytes<width>>([&](auto is_small) {
      using Memory = ForwardMemory<width, is_small>;
      launch_kernel("attention", forward_kernel<decltype(element), width, is_small>,
                    {SequenceTables::Of::kQueries, Memory::kQueries, kThreads}, sizeof(Memory),
                    forward_args<decltype(element)>(args));
    });
  });
}

}  // namespace lockstep::cuda
