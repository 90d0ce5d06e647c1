#include <cmath>

#include "ops/cuda/attention.h"
#include "ops/cuda/attention_arguments.cuh"
#include "ops/cuda/attention_tensor.h"

namespace lockstep::cuda {
namespace {

// 16 x 16 threads. Of a tile of scores, thread (y, x) has rows y + 16 i and columns x + 16 j.
constexpr int kSide = 16;
constexpr int kThreads = kSide * kSide;

// A tile in shared memory, transposed: [kDim][kRows + 1], zero beyond `valid` rows and head_dim columns. The odd
// distance keeps threads that walk down a column or along a row in different banks.
template <int kDim, int kRows>
struct Tile {
  float values[kDim][kRows + 1];

  template <typename T>
  __device__ void load(const T* from, std::int64_t row_stride, int valid, int head_dim) {
    for (int i = static_cast<int>(threadIdx.x); i < kDim * kRows; i += kThreads) {
      const int row = i / kDim;
      const int d = i % kDim;
      values[d][row] = row < valid && d < head_dim ? to_float(from[row * row_stride + d]) : 0.0F;
    }
  }
};

// scores[i][j] = the dot product of row y + 16 i of a and row x + 16 j of b.
template <int kDim, int kA, int kB>
__device__ void dot_rows(const Tile<kDim, kA>& a, const Tile<kDim, kB>& b, float (&scores)[kA / kSide][kB / kSide]) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kA / kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kB / kSide; ++j) {
      scores[i][j] = 0;
    }
  }
#pragma unroll 4
  for (int d = 0; d < kDim; ++d) {
    float left[kA / kSide];
    float right[kB / kSide];
#pragma unroll
    for (int i = 0; i < kA / kSide; ++i) {
      left[i] = a.values[d][y + kSide * i];
    }
#pragma unroll
    for (int j = 0; j < kB / kSide; ++j) {
      right[j] = b.values[d][x + kSide * j];
    }
#pragma unroll
    for (int i = 0; i < kA / kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kB / kSide; ++j) {
        scores[i][j] = fmaf(left[i], right[j], scores[i][j]);
      }
    }
  }
}

// A tile of weights (probabilities or their gradients) in shared memory, [kRows][kColumns + 1].
template <int kRows, int kColumns>
struct Weights {
  float values[kRows][kColumns + 1];

  __device__ void store(const float (&own)[kRows / kSide][kColumns / kSide]) {
    const int x = static_cast<int>(threadIdx.x) % kSide;
    const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
    for (int i = 0; i < kRows / kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns / kSide; ++j) {
        values[y + kSide * i][x + kSide * j] = own[i][j];
      }
    }
  }
};

// sums[i][c] += weights (row y + 16 i) times column x + 16 c of the tile.
template <int kDim, int kRows, int kColumns>
__device__ void add_weighted(const Weights<kRows, kColumns>& weights, const Tile<kDim, kColumns>& tile,
                             float (&sums)[kRows / kSide][kDim / kSide]) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll 2
  for (int k = 0; k < kColumns; ++k) {
    float weight[kRows / kSide];
#pragma unroll
    for (int i = 0; i < kRows / kSide; ++i) {
      weight[i] = weights.values[y + kSide * i][k];
    }
#pragma unroll
    for (int c = 0; c < kDim / kSide; ++c) {
      const float value = tile.values[x + kSide * c][k];
#pragma unroll
      for (int i = 0; i < kRows / kSide; ++i) {
        sums[i][c] = fmaf(weight[i], value, sums[i][c]);
      }
    }
  }
}

// The same with the weights transposed: sums[j][c] += weights (column y + 16 j) times column x + 16 c of the tile.
template <int kDim, int kRows, int kColumns>
__device__ void add_weighted_transposed(const Weights<kRows, kColumns>& weights, const Tile<kDim, kRows>& tile,
                                        float (&sums)[kColumns / kSide][kDim / kSide]) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll 2
  for (int r = 0; r < kRows; ++r) {
    float weight[kColumns / kSide];
#pragma unroll
    for (int j = 0; j < kColumns / kSide; ++j) {
      weight[j] = weights.values[r][y + kSide * j];
    }
#pragma unroll
    for (int c = 0; c < kDim / kSide; ++c) {
      const float value = tile.values[x + kSide * c][r];
#pragma unroll
      for (int j = 0; j < kColumns / kSide; ++j) {
        sums[j][c] = fmaf(weight[j], value, sums[j][c]);
      }
    }
  }
}

template <int kDim, int kRows, typename T>
__device__ void store_rows(const float (&sums)[kRows / kSide][kDim / kSide], T* to, std::int64_t row_stride, int valid,
                           int head_dim) {
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
#pragma unroll
  for (int i = 0; i < kRows / kSide; ++i) {
    const int row = y + kSide * i;
#pragma unroll
    for (int c = 0; c < kDim / kSide; ++c) {
      const int d = x + kSide * c;
      if (row < valid && d < head_dim) {
        to[row * row_stride + d] = from_float<T>(sums[i][c]);
      }
    }
  }
}

template <int kDim, int kQueries, int kKeys>
struct ForwardMemory {
  Tile<kDim, kQueries> q;
  Tile<kDim, kKeys> kv;  // keys, then values
  Weights<kQueries, kKeys> p;
};

// A block for kQueries queries of a head; the longest rows first, so that no block is left over at the end.
template <typename T, int kDim, int kQueries, int kKeys>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ ForwardArgs<T> args) {
  auto& memory = *reinterpret_cast<ForwardMemory<kDim, kQueries, kKeys>*>(dynamic_shared_memory());
  const AttentionSizes& shape = args.sizes;
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
  const int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int head = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z);
  const int kv_head = shape.key_head(head);
  const int rows = min(kQueries, shape.query_length - first_row);
  memory.q.load(args.q.at(batch, first_row, head * shape.head_dim), args.q.row_stride, rows, shape.head_dim);

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
    memory.kv.load(args.k.at(batch, first_key, kv_head * shape.head_dim), args.k.row_stride, valid, shape.head_dim);
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
        p[i][j] = now == -INFINITY ? 0 : expf(p[i][j] - now);
        tile_sum += p[i][j];
        if (shape.dropout.probability > 0) {
          p[i][j] *= shape.dropout_factor(shape.index_of(batch, head, row), first_key + x + kSide * j);
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
    memory.kv.load(args.v.at(batch, first_key, kv_head * shape.head_dim), args.v.row_stride, valid, shape.head_dim);
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
      args.log_sum_exp[shape.index_of(batch, head, row)] = largest[i] + logf(sum[i]);
    }
  }
  store_rows<kDim, kQueries>(out, args.out.at(batch, first_row, head * shape.head_dim), args.out.row_stride, rows,
                             shape.head_dim);
}

// A warp a row.
template <typename T>
__global__ void delta_kernel(const __grid_constant__ BackwardArgs<T> args, std::int64_t count) {
  const AttentionSizes& shape = args.sizes;
  const std::int64_t index = std::int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (index >= count) {
    return;
  }
  const std::int64_t row = index % shape.query_length;
  const std::int64_t head = index / shape.query_length % shape.heads;
  const std::int64_t batch = index / shape.query_length / shape.heads;
  const auto at = [&](const AttentionRows<const T>& view) {
    return view.data + batch * view.batch_stride + row * view.row_stride + head * shape.head_dim;
  };
  const T* out = at(args.out);
  const T* dout = at(args.dout);
  float sum = 0;
  for (int d = static_cast<int>(threadIdx.x) % kWarp; d < shape.head_dim; d += kWarp) {
    sum = fmaf(to_float(out[d]), to_float(dout[d]), sum);
  }
  sum = sum_over_lanes(sum);
  if (threadIdx.x % kWarp == 0) {
    args.delta[index] = sum;
  }
}

template <int kDim, int kQueries, int kKeys>
struct BackwardMemory {
  Tile<kDim, kQueries> q;
  Tile<kDim, kQueries> dout;
  Tile<kDim, kKeys> k;
  Tile<kDim, kKeys> v;
  Weights<kQueries, kKeys> p;
  Weights<kQueries, kKeys> ds;
};

// p (with dropout) and ds = scale * p * (m * (dout v^T) - delta) of a tile, m being what dropout multiplies by, into
// shared memory.
template <typename T, int kDim, int kQueries, int kKeys>
__device__ void recompute(BackwardMemory<kDim, kQueries, kKeys>& memory, const BackwardArgs<T>& args, int batch,
                          int head, int first_row, int first_key) {
  const AttentionSizes& shape = args.sizes;
  const int x = static_cast<int>(threadIdx.x) % kSide;
  const int y = static_cast<int>(threadIdx.x) / kSide;
  float p[kQueries / kSide][kKeys / kSide];
  float ds[kQueries / kSide][kKeys / kSide];
  dot_rows(memory.q, memory.k, p);
  dot_rows(memory.dout, memory.v, ds);
  const std::int64_t before = shape.index_of(batch, head, 0);
#pragma unroll
  for (int i = 0; i < kQueries / kSide; ++i) {
    const int row = first_row + y + kSide * i;
    const bool is_row = row < shape.query_length;
    const float log_sum_exp = is_row ? args.log_sum_exp[before + row] : 0;
    const float delta = is_row ? args.delta[before + row] : 0;
#pragma unroll
    for (int j = 0; j < kKeys / kSide; ++j) {
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
template <typename T, int kDim, int kQueries, int kKeys>
__global__ void __launch_bounds__(kThreads) key_gradient_kernel(const __grid_constant__ BackwardArgs<T> args) {
  auto& memory = *reinterpret_cast<BackwardMemory<kDim, kQueries, kKeys>*>(dynamic_shared_memory());
  const AttentionSizes& shape = args.sizes;
  const int first_key = static_cast<int>(blockIdx.x) * kKeys;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z);
  const int keys = min(kKeys, shape.key_length - first_key);
  memory.k.load(args.k.at(batch, first_key, kv_head * shape.head_dim), args.k.row_stride, keys, shape.head_dim);
  memory.v.load(args.v.at(batch, first_key, kv_head * shape.head_dim), args.v.row_stride, keys, shape.head_dim);
  float dk[kKeys / kSide][kDim / kSide] = {};
  float dv[kKeys / kSide][kDim / kSide] = {};
  const int group = shape.heads / shape.kv_heads;
  // The first query that sees the first key.
  const int first_visible = max(0, first_key - (shape.key_length - shape.query_length));
  for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int first_row = first_visible / kQueries * kQueries; first_row < shape.query_length; first_row += kQueries) {
      const int rows = min(kQueries, shape.query_length - first_row);
      __syncthreads();
      memory.q.load(args.q.at(batch, first_row, head * shape.head_dim), args.q.row_stride, rows, shape.head_dim);
      memory.dout.load(args.dout.at(batch, first_row, head * shape.head_dim), args.dout.row_stride, rows,
                       shape.head_dim);
      __syncthreads();
      recompute(memory, args, batch, head, first_row, first_key);
      __syncthreads();
      add_weighted_transposed(memory.p, memory.dout, dv);
      add_weighted_transposed(memory.ds, memory.q, dk);
    }
  }
  store_rows<kDim, kKeys>(dk, args.dk.at(batch, first_key, kv_head * shape.head_dim), args.dk.row_stride, keys,
                          shape.head_dim);
  store_rows<kDim, kKeys>(dv, args.dv.at(batch, first_key, kv_head * shape.head_dim), args.dv.row_stride, keys,
                          shape.head_dim);
}

// A block for kQueries queries of a head: dq.
template <typename T, int kDim, int kQueries, int kKeys>
__global__ void __launch_bounds__(kThreads) query_gradient_kernel(const __grid_constant__ BackwardArgs<T> args) {
  auto& memory = *reinterpret_cast<BackwardMemory<kDim, kQueries, kKeys>*>(dynamic_shared_memory());
  const AttentionSizes& shape = args.sizes;
  const int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;
  const int head = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z);
  const int kv_head = shape.key_head(head);
  const int rows = min(kQueries, shape.query_length - first_row);
  memory.q.load(args.q.at(batch, first_row, head * shape.head_dim), args.q.row_stride, rows, shape.head_dim);
  memory.dout.load(args.dout.at(batch, first_row, head * shape.head_dim), args.dout.row_stride, rows, shape.head_dim);
  float dq[kQueries / kSide][kDim / kSide] = {};
  const int keys = min(shape.key_length, shape.visible(first_row + rows - 1));
  for (int first_key = 0; first_key < keys; first_key += kKeys) {
    const int valid = min(kKeys, keys - first_key);
    __syncthreads();
    memory.k.load(args.k.at(batch, first_key, kv_head * shape.head_dim), args.k.row_stride, valid, shape.head_dim);
    memory.v.load(args.v.at(batch, first_key, kv_head * shape.head_dim), args.v.row_stride, valid, shape.head_dim);
    __syncthreads();
    recompute(memory, args, batch, head, first_row, first_key);
    __syncthreads();
    add_weighted(memory.ds, memory.k, dq);
  }
  store_rows<kDim, kQueries>(dq, args.dq.at(batch, first_row, head * shape.head_dim), args.dq.row_stride, rows,
                             shape.head_dim);
}

// The width that a head is padded to.
template <typename F>
void with_width(std::int64_t head_dim, const F& f) {
  if (head_dim <= 32) {
    f(std::integral_constant<int, 32>{});
  } else if (head_dim <= 64) {
    f(std::integral_constant<int, 64>{});
  } else if (head_dim <= 128) {
    f(std::integral_constant<int, 128>{});
  } else {
    f(std::integral_constant<int, 256>{});
  }
}

// What a block of a gradient's kernel works on at a time.
template <int kDim, int kQueries, int kKeys>
struct BackwardTiles {
  static constexpr int kWidth = kDim;
  static constexpr int kRowsOfQueries = kQueries;
  static constexpr int kRowsOfKeys = kKeys;
  static constexpr std::size_t kBytes = sizeof(BackwardMemory<kDim, kQueries, kKeys>);
};

template <typename T, typename Tiles>
void launch_backward(const AttentionShape& shape, const BackwardArgs<T>& args, cudaStream_t stream) {
  constexpr int kQueries = Tiles::kRowsOfQueries;
  constexpr int kKeys = Tiles::kRowsOfKeys;
  launch_attention("attention's gradient", key_gradient_kernel<T, Tiles::kWidth, kQueries, kKeys>,
                   {shape.key_length, kKeys, shape.kv_heads, shape.batch, kThreads}, Tiles::kBytes, stream, args);
  launch_attention("attention's gradient", query_gradient_kernel<T, Tiles::kWidth, kQueries, kKeys>,
                   {shape.query_length, kQueries, shape.heads, shape.batch, kThreads}, Tiles::kBytes, stream, args);
}

}  // namespace

void attention_forward(const AttentionForward& args, cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  if (shape.batch * shape.query_length == 0) {
    return;
  }
  if (tensor_cores::take(args)) {
    tensor_cores::attention_forward(args, stream);
    return;
  }
  with_working_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    with_width(shape.head_dim, [&](auto width) {
      constexpr int kDim = decltype(width)::value;
      constexpr int kQueries = kDim == 256 ? 32 : 64;
      constexpr int kKeys = kDim == 256 ? 32 : 64;
      launch_attention("attention", forward_kernel<T, kDim, kQueries, kKeys>,
                       {shape.query_length, kQueries, shape.heads, shape.batch, kThreads},
                       sizeof(ForwardMemory<kDim, kQueries, kKeys>), stream, forward_args<T>(args));
    });
  });
}

void attention_backward(const AttentionBackward& args, Scratch& scratch, cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  const std::int64_t rows = shape.batch * shape.heads * shape.query_length;
  if (rows == 0) {
    return;
  }
  auto* const delta = scratch.get<float>(static_cast<std::size_t>(rows));
  with_working_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    const BackwardArgs<T> kernel_args = backward_args<T>(args, delta);
    launch("attention's gradient", delta_kernel<T>,
           {static_cast<unsigned>(divided_up(rows, kThreads / kWarp)), kThreads}, stream, kernel_args, rows);
    if (tensor_cores::take(args)) {
      tensor_cores::attention_backward(args, delta, stream);
      return;
    }
    with_width(shape.head_dim, [&](auto width) {
      constexpr int kDim = decltype(width)::value;
      using Usual = BackwardTiles<kDim, 32, kDim == 256 ? 32 : 64>;
      if constexpr (Usual::kBytes > kLeastSharedBytes) {
        using Small = BackwardTiles<kDim, kDim == 256 ? 16 : 32, kDim == 256 ? 16 : 32>;
        static_assert(Small::kBytes <= kLeastSharedBytes);
        if (Usual::kBytes > most_shared_memory()) {
          launch_backward<T, Small>(shape, kernel_args, stream);
          return;
        }
      }
      launch_backward<T, Usual>(shape, kernel_args, stream);
    });
  });
}

}  // namespace lockstep::cuda
