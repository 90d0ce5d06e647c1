#include <cmath>

#include "ops/cuda/attention.h"
#include "ops/cuda/attention_ordinary.cuh"
#include "ops/cuda/attention_tensor.h"

namespace lockstep::cuda {
namespace {

using namespace ordinary_cores;

// A warp a row, of kDeltaRows of a head in turn.
constexpr int kDeltaRows = 32;
template <typename T>
__global__ void __launch_bounds__(kThreads) delta_kernel(const __grid_constant__ BackwardArgs<T> args) {
  AttentionSizes shape = args.sizes;
  const BlockRows block = shape.take_tile(kDeltaRows, false);
  const int head = static_cast<int>(blockIdx.y);
  const int end = min(block.first + kDeltaRows, shape.query_length);
  for (int row = block.first + static_cast<int>(threadIdx.x) / kWarp; row < end; row += kThreads / kWarp) {
    const T* out = args.out.at(block, row, head * shape.head_dim);
    const T* dout = args.dout.at(block, row, head * shape.head_dim);
    float sum = 0;
    for (int d = static_cast<int>(threadIdx.x) % kWarp; d < shape.head_dim; d += kWarp) {
      sum = fmaf(to_float(out[d]), to_float(dout[d]), sum);
    }
    sum = sum_over_lanes(sum);
    if (threadIdx.x % kWarp == 0) {
      args.delta[shape.place_of(block, head, row)] = sum;
    }
  }
}

// What a block of a gradient's kernel works on at a time: the block's own rows, and those that it goes over. Of keys,
// the own ones are those of k and v and the others those of q and dout; of queries, the other way round. Where tiles
// are small, the others' take turns in one: each is loaded before it is used.
template <int kDim, bool kIsSmall, bool kOfKeys>
struct BackwardMemory {
  static constexpr int kQueries = kIsSmall && kDim == 256 ? 16 : 32;
  static constexpr int kKeys = kIsSmall ? kQueries : kDim == 256 ? 32 : 64;
  static constexpr bool kTakesTurns = kIsSmall;
  Tile<kDim, kOfKeys ? kKeys : kQueries> own[2];
  Tile<kDim, kOfKeys ? kQueries : kKeys> others[kTakesTurns ? 1 : 2];
  Weights<kQueries, kKeys> p;
  Weights<kQueries, kKeys> ds;
};
template <int kDim>
constexpr std::size_t kUsualBackwardBytes = sizeof(BackwardMemory<kDim, false, true>);
template <int kDim>
constexpr std::size_t kSmallBackwardBytes = sizeof(BackwardMemory<kDim, true, true>);
// Of both gradients.
static_assert(sizeof(BackwardMemory<64, false, true>) == sizeof(BackwardMemory<64, false, false>));
static_assert(sizeof(BackwardMemory<256, true, true>) == sizeof(BackwardMemory<256, true, false>));
static_assert(kUsualBackwardBytes<32> <= kTuringSharedBytes && kSmallBackwardBytes<64> <= kTuringSharedBytes);
static_assert(kSmallBackwardBytes<128> <= kTuringSharedBytes && kSmallBackwardBytes<256> <= kTuringSharedBytes);

// Makes way for what `load` brings, where it takes turns with what is there.
template <bool kTakesTurns, typename Load>
__device__ void take_turn(const Load& load) {
  if constexpr (kTakesTurns) {
    __syncthreads();
    load();
    __syncthreads();
  }
}

// Of a tile, q k^T and dout v^T become p (with dropout) and ds = scale * p * (m * (dout v^T) - delta), m being what
// dropout multiplies by, in shared memory.
template <typename T, int kQueries, int kKeys, typename Memory>
__device__ void weigh(Memory& memory, const BackwardArgs<T>& args, const AttentionSizes& shape, const BlockRows& block,
                      float (&p)[kQueries][kKeys], float (&ds)[kQueries][kKeys], int head, int first_row,
                      int first_key) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
  const std::int64_t before = shape.index_of(block, head, 0);
  const std::int64_t place = shape.place_of(block, head, 0);
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    const int row = first_row + y + kSide * i;
    const bool is_row = row < shape.query_length;
    const float log_sum_exp = is_row ? args.log_sum_exp[place + row] : 0;
    const float delta = is_row ? args.delta[place + row] : 0;
#pragma unroll
    for (int j = 0; j < kKeys; ++j) {
      const int key = first_key + x + kSide * j;
      const bool sees = is_row && key < shape.visible(row) && key < shape.key_length;
      const float probability = sees ? expf(p[i][j] * shape.scale - log_sum_exp) : 0;
      const float m = sees ? shape.dropout_factor(before + row, key) : 0;
      p[i][j] = probability * m;
      ds[i][j] = shape.scale * probability * (m * ds[i][j] - delta);
    }
  }
  memory.p.store(p);
  memory.ds.store(ds);
}

// A block for kKeys keys of a key head: dk and dv, over all queries of all query heads that use it, in order.
template <typename T, int kDim, bool kIsSmall>
__device__ __forceinline__ void key_gradient(const BackwardArgs<T>& args) {
  using Memory = BackwardMemory<kDim, kIsSmall, true>;
  constexpr int kQueries = Memory::kQueries;
  constexpr int kKeys = Memory::kKeys;
  constexpr bool kTakesTurns = Memory::kTakesTurns;
  auto& memory = *reinterpret_cast<Memory*>(dynamic_shared_memory());
  auto& [k, v] = memory.own;
  auto& q = memory.others[0];
  auto& dout = memory.others[kTakesTurns ? 0 : 1];
  AttentionSizes shape = args.sizes;
  const BlockRows block = shape.take_tile(kKeys, false);
  const int first_key = block.first;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int keys = min(kKeys, shape.key_length - first_key);
  k.load(args.k.at(block, first_key, kv_head * shape.head_dim), args.k.row_stride, keys, shape.head_dim);
  v.load(args.v.at(block, first_key, kv_head * shape.head_dim), args.v.row_stride, keys, shape.head_dim);
  float dk[kKeys / kSide][kDim / kSide] = {};
  float dv[kKeys / kSide][kDim / kSide] = {};
  const int group = shape.heads / shape.kv_heads;
  // The first query that sees the first key.
  const int first_visible = max(0, first_key - (shape.key_length - shape.query_length));
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int first_row = first_visible / kQueries * kQueries; first_row < shape.query_length; first_row += kQueries) {
      const int rows = min(kQueries, shape.query_length - first_row);
      const auto load = [&](auto& tile, const AttentionRows<const T>& from) {
        tile.load(from.at(block, first_row, head * shape.head_dim), from.row_stride, rows, shape.head_dim);
      };
      __syncthreads();
      load(q, args.q);
      if constexpr (!kTakesTurns) {
        load(dout, args.dout);
      }
      __syncthreads();
      float p[kQueries / kSide][kKeys / kSide];
      float ds[kQueries / kSide][kKeys / kSide];
      dot_rows(q, k, p);
      take_turn<kTakesTurns>([&] { load(dout, args.dout); });
      dot_rows(dout, v, ds);
      weigh(memory, args, shape, block, p, ds, head, first_row, first_key);
      __syncthreads();
      add_weighted_transposed(memory.p, dout, dv);
      take_turn<kTakesTurns>([&] { load(q, args.q); });
      add_weighted_transposed(memory.ds, q, dk);
    }
  }
  store_rows<kDim, kKeys>(dk, args.dk.at(block, first_key, kv_head * shape.head_dim), args.dk.row_stride, keys,
                          shape.head_dim);
  store_rows<kDim, kKeys>(dv, args.dv.at(block, first_key, kv_head * shape.head_dim), args.dv.row_stride, keys,
                          shape.head_dim);
}

template <typename T, int kDim, bool kIsSmall>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(const __grid_constant__ BackwardArgs<T> args) {
  if constexpr (kCanBeChosen<T, kUsualBackwardBytes<kDim>, kIsSmall>) {
    key_gradient<T, kDim, kIsSmall>(args);
  } else {
    __trap();
  }
}

// A block for kQueries queries of a head: dq.
template <typename T, int kDim, bool kIsSmall>
__device__ __forceinline__ void query_gradient(const BackwardArgs<T>& args) {
  using Memory = BackwardMemory<kDim, kIsSmall, false>;
  constexpr int kQueries = Memory::kQueries;
  constexpr int kKeys = Memory::kKeys;
  constexpr bool kTakesTurns = Memory::kTakesTurns;
  auto& memory = *reinterpret_cast<Memory*>(dynamic_shared_memory());
  auto& [q, dout] = memory.own;
  auto& k = memory.others[0];
  auto& v = memory.others[kTakesTurns ? 0 : 1];
  AttentionSizes shape = args.sizes;
  const BlockRows block = shape.take_tile(kQueries, true);
  const int first_row = block.first;
  const int head = static_cast<int>(blockIdx.y);
  const int kv_head = shape.key_head(head);
  const int rows = min(kQueries, shape.query_length - first_row);
  q.load(args.q.at(block, first_row, head * shape.head_dim), args.q.row_stride, rows, shape.head_dim);
  dout.load(args.dout.at(block, first_row, head * shape.head_dim), args.dout.row_stride, rows, shape.head_dim);
  float dq[kQueries / kSide][kDim / kSide] = {};
  const int keys = min(shape.key_length, shape.visible(first_row + rows - 1));
  for (int first_key = 0; first_key < keys; first_key += kKeys) {
    const int valid = min(kKeys, keys - first_key);
    const auto load = [&](auto& tile, const AttentionRows<const T>& from) {
      tile.load(from.at(block, first_key, kv_head * shape.head_dim), from.row_stride, valid, shape.head_dim);
    };
    __syncthreads();
    load(k, args.k);
    if constexpr (!kTakesTurns) {
      load(v, args.v);
    }
    __syncthreads();
    float p[kQueries / kSide][kKeys / kSide];
    float ds[kQueries / kSide][kKeys / kSide];
    dot_rows(q, k, p);
    take_turn<kTakesTurns>([&] { load(v, args.v); });
    dot_rows(dout, v, ds);
    weigh(memory, args, shape, block, p, ds, head, first_row, first_key);
    __syncthreads();
    take_turn<kTakesTurns>([&] { load(k, args.k); });
    add_weighted(memory.ds, k, dq);
  }
  store_rows<kDim, kQueries>(dq, args.dq.at(block, first_row, head * shape.head_dim), args.dq.row_stride, rows,
                             shape.head_dim);
}

template <typename T, int kDim, bool kIsSmall>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(const __grid_constant__ BackwardArgs<T> args) {
  if constexpr (kCanBeChosen<T, kUsualBackwardBytes<kDim>, kIsSmall>) {
    query_gradient<T, kDim, kIsSmall>(args);
  } else {
    __trap();
  }
}

}  // namespace

void attention_backward(const AttentionBackward& args, SequenceTables& tables, Scratch& scratch, cudaStream_t stream) {
  const std::int64_t rows = args.shape.batch * args.shape.heads * args.shape.query_length;
  if (rows == 0) {
    return;
  }
  auto* const delta = scratch.get<float>(static_cast<std::size_t>(rows));
  const AttentionLaunch launch_kernel(args, tables, stream);
  with_working_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    launch_kernel("attention's gradient", delta_kernel<T>, {SequenceTables::Of::kQueries, kDeltaRows, kThreads}, 0,
                  backward_args<T>(args, delta));
  });
  if (tensor_cores::take(args)) {
    tensor_cores::attention_backward(args, delta, launch_kernel);
    return;
  }
  with_variant(args.dtype, args.shape.head_dim, [&](auto element, auto width) {
    with_tile_size<kUsualBackwardBytes<width>>([&](auto is_small) {
      using T = decltype(element);
      using Memory = BackwardMemory<width, is_small, true>;
      const BackwardArgs<T> kernel_args = backward_args<T>(args, delta);
      launch_kernel("attention's gradient", key_gradient_kernel<T, width, is_small>,
                    {SequenceTables::Of::kKeys, Memory::kKeys, kThreads}, sizeof(Memory), kernel_args);
      launch_kernel("attention's gradient", query_gradient_kernel<T, width, is_small>,
                    {SequenceTables::Of::kQueries, Memory::kQueries, kThreads}, sizeof(Memory), kernel_args);
    });
  });
}

}  // namespace lockstep::cuda
