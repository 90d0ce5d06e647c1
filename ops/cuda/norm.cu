// A warp takes a row that fits its registers, a block any other. The gradients of gain and bias are sums down the
// columns: see reduce.cuh.
#include <algorithm>

#include "ops/cuda/dropout.cuh"
#include "ops/cuda/norm.h"
#include "ops/cuda/reduce.cuh"

namespace lockstep::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarpColumns = kWarp * kPack;  // that a warp takes at a time
constexpr int kMostPacks = 8;                // a row of up to 2048

// What a row goes through; pointers are to the first row.
template <typename T>
struct ForwardRows {
  std::int64_t rows;
  int columns;
  float epsilon;
  const T* x;
  const T* branch;
  Dropout dropout;
  float factor;  // of what dropout keeps
  const T* gain;
  const T* bias;
  T* sum;
  T* y;
  float* mean;
  float* rstd;
};

// x + dropout(branch), as it is stored, for N elements from `column` of a row on.
template <int N, typename T>
__device__ Values<N> sum_at(const ForwardRows<T>& args, std::int64_t row, int column) {
  const std::int64_t i = row * args.columns + column;
  Values<N> x = load<N>(args.x + i);
  if (args.branch == nullptr) {
    return x;
  }
  Values<N> branch = load<N>(args.branch + i);
  if (args.dropout.probability > 0) {
    const Values<N> factors = dropout_factors<N>(args.dropout, args.factor, i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      branch.v[k] = factors.v[k] == 0 ? 0.0F : branch.v[k] * factors.v[k];
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    x.v[k] = rounded<T>(x.v[k] + branch.v[k]);
  }
  store(x, args.sum + i);
  return x;
}

template <int N, typename T>
__device__ void store_normalised(const ForwardRows<T>& args, std::int64_t row, int column, const Values<N>& sum,
                                 float mean, float rstd) {
  const Values<N> gain = load<N>(args.gain + column);
  Values<N> y;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    y.v[k] = (sum.v[k] - mean) * rstd * gain.v[k];
  }
  if (args.bias != nullptr) {
    const Values<N> bias = load<N>(args.bias + column);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      y.v[k] += bias.v[k];
    }
  }
  store(y, args.y + row * args.columns + column);
}

// kPacks: how many times a warp moves on to cover a row.
template <typename T, int kPacks, bool kHasMean>
__global__ void forward_by_warp(const __grid_constant__ ForwardRows<T> args) {
  const std::int64_t row = std::int64_t{blockIdx.x} * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (row >= args.rows) {
    return;
  }
  const int first = static_cast<int>(threadIdx.x % kWarp) * kPack;
  Values<kPack> values[kPacks];
  float total = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = p * kWarpColumns + first;
    if (column < args.columns) {
      values[p] = sum_at<kPack>(args, row, column);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        total += values[p].v[k];
      }
    }
  }
  const float mean = kHasMean ? sum_over_lanes(total) / static_cast<float>(args.columns) : 0.0F;
  float squares = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    if (p * kWarpColumns + first < args.columns) {
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const float distance = values[p].v[k] - mean;
        squares += distance * distance;
      }
    }
  }
  const float rstd = 1.0F / sqrtf(sum_over_lanes(squares) / static_cast<float>(args.columns) + args.epsilon);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = p * kWarpColumns + first;
    if (column < args.columns) {
      store_normalised(args, row, column, values[p], mean, rstd);
    }
  }
  if (threadIdx.x % kWarp == 0) {
    if (kHasMean) {
      args.mean[row] = mean;
    }
    args.rstd[row] = rstd;
  }
}

template <typename T, bool kHasMean>
__global__ void forward_by_block(const __grid_constant__ ForwardRows<T> args) {
  const std::int64_t row = blockIdx.x;
  const T* sum = (args.branch == nullptr ? args.x : args.sum) + row * args.columns;
  float total = 0;
  for (int c = static_cast<int>(threadIdx.x); c < args.columns; c += kBlock) {
    total += sum_at<1>(args, row, c).v[0];
  }
  const float mean = kHasMean ? sum_over_block<kBlock>(total) / static_cast<float>(args.columns) : 0.0F;
  float squares = 0;
  for (int c = static_cast<int>(threadIdx.x); c < args.columns; c += kBlock) {  // what this thread wrote itself
    const float distance = to_float(sum[c]) - mean;
    squares += distance * distance;
  }
  const float rstd = 1.0F / sqrtf(sum_over_block<kBlock>(squares) / static_cast<float>(args.columns) + args.epsilon);
  for (int c = static_cast<int>(threadIdx.x); c < args.columns; c += kBlock) {
    store_normalised(args, row, c, load<1>(sum + c), mean, rstd);
  }
  if (threadIdx.x == 0) {
    if (kHasMean) {
      args.mean[row] = mean;
    }
    args.rstd[row] = rstd;
  }
}

// With n = (sum - mean) * rstd and g = dy * gain:  dx = rstd * (g - mean(g) - n * mean(g * n)) + dsum
template <typename T>
struct BackwardRows {
  std::int64_t rows;
  int columns;
  const T* dy;
  const T* dsum;
  const T* sum;
  const T* gain;
  const float* mean;  // null: 0
  const float* rstd;
  T* dx;
};

template <int N>
struct Normalised {
  Values<N> g;
  Values<N> n;
};
template <int N, typename T>
__device__ Normalised<N> normalised_at(const BackwardRows<T>& args, std::int64_t row, int column, float mean,
                                       float rstd) {
  const std::int64_t i = row * args.columns + column;
  Normalised<N> at{load<N>(args.dy + i), load<N>(args.sum + i)};
  const Values<N> gain = load<N>(args.gain + column);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    at.g.v[k] *= gain.v[k];
    at.n.v[k] = (at.n.v[k] - mean) * rstd;
  }
  return at;
}

template <int N, typename T>
__device__ void store_gradient(const BackwardRows<T>& args, std::int64_t row, int column, const Normalised<N>& at,
                               float rstd, float mean_g, float mean_gn) {
  const std::int64_t i = row * args.columns + column;
  Values<N> dx;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    dx.v[k] = rstd * (at.g.v[k] - mean_g - at.n.v[k] * mean_gn);
  }
  if (args.dsum != nullptr) {
    const Values<N> dsum = load<N>(args.dsum + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      dx.v[k] += dsum.v[k];
    }
  }
  store(dx, args.dx + i);
}

// The rows of a warp, one after the other, while it adds what they give dgain and dbias (partial[block][2][columns]).
template <typename T, int kPacks, bool kHasMean>
__global__ void __launch_bounds__(kBlock)
    backward_with_sums(const __grid_constant__ BackwardRows<T> args, float* partial) {
  constexpr int kWarps = kBlock / kWarp;
  const int warp = static_cast<int>(threadIdx.x / kWarp);
  const int first = static_cast<int>(threadIdx.x % kWarp) * kPack;
  const auto columns = static_cast<float>(args.columns);
  Values<kPack> dgain[kPacks] = {};
  Values<kPack> dbias[kPacks] = {};
  for (std::int64_t row = std::int64_t{blockIdx.x} * kWarps + warp; row < args.rows;
       row += std::int64_t{gridDim.x} * kWarps) {
    const float mean = kHasMean ? args.mean[row] : 0.0F;
    const float rstd = args.rstd[row];
    Normalised<kPack> values[kPacks];
    float sum_g = 0;
    float sum_gn = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int column = p * kWarpColumns + first;
      if (column < args.columns) {
        const std::int64_t i = row * args.columns + column;
        const Values<kPack> dy = load<kPack>(args.dy + i);
        const Values<kPack> sum = load<kPack>(args.sum + i);
        const Values<kPack> gain = load<kPack>(args.gain + column);
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const float n = (sum.v[k] - mean) * rstd;
          const float g = dy.v[k] * gain.v[k];
          values[p].n.v[k] = n;
          values[p].g.v[k] = g;
          dgain[p].v[k] += dy.v[k] * n;
          dbias[p].v[k] += dy.v[k];
          sum_g += g;
          sum_gn += g * n;
        }
      }
    }
    const float mean_g = kHasMean ? sum_over_lanes(sum_g) / columns : 0.0F;
    const float mean_gn = sum_over_lanes(sum_gn) / columns;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int column = p * kWarpColumns + first;
      if (column < args.columns) {
        store_gradient(args, row, column, values[p], rstd, mean_g, mean_gn);
      }
    }
  }
  __shared__ float shared[kWarps][kWarpColumns];
#pragma unroll
  for (int p = 0; p < 2 * kPacks; ++p) {
    const Values<kPack>& own = p < kPacks ? dgain[p % kPacks] : dbias[p % kPacks];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      shared[warp][first + k] = own.v[k];
    }
    __syncthreads();
    const int column = (p % kPacks) * kWarpColumns + static_cast<int>(threadIdx.x);
    if (column < args.columns) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        sum += shared[w][threadIdx.x];
      }
      partial[(std::int64_t{blockIdx.x} * 2 + p / kPacks) * args.columns + column] = sum;
    }
  }
}

// Rows that are too long for sums in registers.
template <typename T, bool kHasMean>
__global__ void backward_by_warp(const __grid_constant__ BackwardRows<T> args) {
  constexpr int kPacks = kMostPacks;
  const std::int64_t row = std::int64_t{blockIdx.x} * (kBlock / kWarp) + threadIdx.x / kWarp;
  if (row >= args.rows) {
    return;
  }
  const int first = static_cast<int>(threadIdx.x % kWarp) * kPack;
  const float mean = kHasMean ? args.mean[row] : 0.0F;
  const float rstd = args.rstd[row];
  Normalised<kPack> values[kPacks];
  float sum_g = 0;
  float sum_gn = 0;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = p * kWarpColumns + first;
    if (column < args.columns) {
      values[p] = normalised_at<kPack>(args, row, column, mean, rstd);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        sum_g += values[p].g.v[k];
        sum_gn += values[p].g.v[k] * values[p].n.v[k];
      }
    }
  }
  const auto columns = static_cast<float>(args.columns);
  const float mean_g = kHasMean ? sum_over_lanes(sum_g) / columns : 0.0F;
  const float mean_gn = sum_over_lanes(sum_gn) / columns;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int column = p * kWarpColumns + first;
    if (column < args.columns) {
      store_gradient(args, row, column, values[p], rstd, mean_g, mean_gn);
    }
  }
}

template <typename T, bool kHasMean>
__global__ void backward_by_block(const __grid_constant__ BackwardRows<T> args) {
  const std::int64_t row = blockIdx.x;
  const float mean = kHasMean ? args.mean[row] : 0.0F;
  const float rstd = args.rstd[row];
  float sum_g = 0;
  float sum_gn = 0;
  for (int c = static_cast<int>(threadIdx.x); c < args.columns; c += kBlock) {
    const Normalised<1> at = normalised_at<1>(args, row, c, mean, rstd);
    sum_g += at.g.v[0];
    sum_gn += at.g.v[0] * at.n.v[0];
  }
  const auto columns = static_cast<float>(args.columns);
  const float mean_g = kHasMean ? sum_over_block<kBlock>(sum_g) / columns : 0.0F;
  const float mean_gn = sum_over_block<kBlock>(sum_gn) / columns;
  for (int c = static_cast<int>(threadIdx.x); c < args.columns; c += kBlock) {
    store_gradient(args, row, c, normalised_at<1>(args, row, c, mean, rstd), rstd, mean_g, mean_gn);
  }
}

// dgain gets dy * n, dbias dy.
template <typename T>
struct ParameterTerms {
  static constexpr int kSums = 2;
  BackwardRows<T> rows;
  template <int N>
  __device__ void at(std::int64_t row, int column, Values<N> (&terms)[kSums]) const {
    const std::int64_t i = row * rows.columns + column;
    const float mean = rows.mean == nullptr ? 0.0F : rows.mean[row];
    const float rstd = rows.rstd[row];
    terms[1] = load<N>(rows.dy + i);
    const Values<N> sum = load<N>(rows.sum + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      terms[0].v[k] = terms[1].v[k] * (sum.v[k] - mean) * rstd;
    }
  }
};

// Calls f with the number of packs as a constant, when a warp can take rows of `columns`.
template <typename F>
bool with_packs(int columns, const F& f) {
  const std::int64_t packs = divided_up(columns, kWarpColumns);
  if (columns % kPack != 0 || packs > kMostPacks) {
    return false;
  }
  switch (packs) {
    case 1:
      f(std::integral_constant<int, 1>{});
      break;
    case 2:
      f(std::integral_constant<int, 2>{});
      break;
    case 3:
      f(std::integral_constant<int, 3>{});
      break;
    case 4:
      f(std::integral_constant<int, 4>{});
      break;
    default:
      f(std::integral_constant<int, kMostPacks>{});
      break;
  }
  return true;
}

template <typename T, bool kHasMean>
void launch_forward(const ForwardRows<T>& args, bool aligned, cudaStream_t stream) {
  const bool by_warp = aligned && with_packs(args.columns, [&](auto packs) {
                         const auto blocks = static_cast<unsigned>(divided_up(args.rows, kBlock / kWarp));
                         launch("norm", forward_by_warp<T, decltype(packs)::value, kHasMean>, {blocks, kBlock}, stream, args);
                       });
  if (!by_warp) {
    launch("norm", forward_by_block<T, kHasMean>, {static_cast<unsigned>(args.rows), kBlock}, stream, args);
  }
}

// Of rows that are short enough for sums in registers.
constexpr int kMostPacksWithSums = 4;
constexpr std::int64_t kSumBlocks = 264;
template <typename T, bool kHasMean>
bool launch_backward_with_sums(const BackwardRows<T>& args, const ColumnSums& sums, const SumTargets<2>& targets,
                               Scratch& scratch, cudaStream_t stream) {
  if (!sums.in_packs || args.rows == 0 || args.columns > kMostPacksWithSums * kWarpColumns) {
    return false;
  }
  return with_packs(args.columns, [&](auto packs) {
    constexpr int kPacks = decltype(packs)::value;
    if constexpr (kPacks <= kMostPacksWithSums) {
      const std::int64_t blocks = std::min(kSumBlocks, divided_up(args.rows, kBlock / kWarp));
      float* partial = scratch.get<float>(static_cast<std::size_t>(blocks * 2 * args.columns));
      launch("norm's gradient", backward_with_sums<T, kPacks, kHasMean>, {static_cast<unsigned>(blocks), kBlock}, stream,
             args, partial);
      add_partial_sums(partial, blocks, sums, targets, stream);
    }
  });
}

template <typename T, bool kHasMean>
void launch_backward(const BackwardRows<T>& args, bool aligned, cudaStream_t stream) {
  if (aligned && args.columns % kPack == 0 && args.columns <= kMostPacks * kWarpColumns) {
    const auto blocks = static_cast<unsigned>(divided_up(args.rows, kBlock / kWarp));
    launch("norm's gradient", backward_by_warp<T, kHasMean>, {blocks, kBlock}, stream, args);
  } else {
    launch("norm's gradient", backward_by_block<T, kHasMean>, {static_cast<unsigned>(args.rows), kBlock}, stream, args);
  }
}

}  // namespace

void norm_forward(const NormForward& norm, cudaStream_t stream) {
  if (norm.x.count() == 0) {
    return;
  }
  with_working_type(norm.x.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto at = [](const Tensor& tensor) { return pointer<T>(tensor.data()); };
    const ForwardRows<T> args{norm.x.rows(),
                              static_cast<int>(norm.x.dim(-1)),
                              norm.epsilon,
                              at(norm.x),
                              at(norm.branch),
                              norm.dropout,
                              1.0F / (1.0F - norm.dropout.probability),
                              at(norm.gain),
                              at(norm.bias),
                              at(norm.sum),
                              at(norm.y),
                              pointer<float>(norm.mean.data()),
                              pointer<float>(norm.rstd.data())};
    const bool aligned = are_aligned({args.x, args.branch, args.gain, args.bias, args.sum, args.y});
    if (norm.kind == NormKind::kLayer) {
      launch_forward<T, true>(args, aligned, stream);
    } else {
      launch_forward<T, false>(args, aligned, stream);
    }
  });
}

void norm_backward(const NormBackward& norm, Scratch& scratch, cudaStream_t stream) {
  with_working_type(norm.dy.dtype(), [&](auto type) {
    using T = decltype(type);
    const auto at = [](const Tensor& tensor) { return pointer<T>(tensor.data()); };
    const bool has_mean = norm.kind == NormKind::kLayer;
    const BackwardRows<T> args{norm.dy.rows(),
                               static_cast<int>(norm.dy.dim(-1)),
                               at(norm.dy),
                               at(norm.dsum),
                               at(norm.sum),
                               at(norm.gain),
                               has_mean ? pointer<float>(norm.mean.data()) : nullptr,
                               pointer<float>(norm.rstd.data()),
                               at(norm.dx)};
    const bool aligned = are_aligned({args.dy, args.dsum, args.sum, args.gain, args.dx});
    const ColumnSums sums{args.rows, args.columns, aligned, norm.accumulate_parameters};
    const SumTargets<2> targets{{pointer<float>(norm.dgain.data()), pointer<float>(norm.dbias.data())}};
    if (has_mean ? launch_backward_with_sums<T, true>(args, sums, targets, scratch, stream)
                 : launch_backward_with_sums<T, false>(args, sums, targets, scratch, stream)) {
      return;
    }
    // The sums first, because dx may take dsum's place, and even dy's.
    column_sums(ParameterTerms<T>{args}, sums, targets, scratch, stream);
    if (args.rows == 0) {
      return;
    }
    if (has_mean) {
      launch_backward<T, true>(args, aligned, stream);
    } else {
      launch_backward<T, false>(args, aligned, stream);
    }
  });
}

}  // namespace lockstep::cuda
