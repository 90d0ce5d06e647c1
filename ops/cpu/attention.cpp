#include "ops/cpu/attention.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <vector>

#include "ops/cpu/dispatch.h"
#include "ops/cpu/softmax.h"

namespace lockstep::cpu {
namespace {

// Query rows in a block: short blocks skip more of the masked half, long ones feed the matrix kernels better.
std::int64_t block_rows(std::int64_t query_length) { return query_length > 512 ? 128 : 64; }

// Keys that a block works on are rounded up to this, so that a growing cache needs few shapes of matrix kernels.
constexpr std::int64_t kKeyGranule = 64;

struct Block {
  std::int64_t first = 0;         // query row
  std::int64_t rows = 0;          // of the block
  std::int64_t first_length = 0;  // keys that its first row sees
  std::int64_t keys = 0;          // keys it is computed with: all that its last row sees, rounded up
};

Block block_of(const AttentionShape& shape, std::int64_t index) {
  const std::int64_t size = block_rows(shape.query_length);
  Block block;
  block.first = index * size;
  block.rows = std::min(size, shape.query_length - block.first);
  block.first_length = shape.key_length - shape.query_length + block.first + 1;
  const std::int64_t seen = block.first_length + block.rows - 1;
  block.keys = std::min((seen + kKeyGranule - 1) / kKeyGranule * kKeyGranule, shape.key_capacity);
  return block;
}

std::int64_t block_count(const AttentionShape& shape) {
  const std::int64_t size = block_rows(shape.query_length);
  return (shape.query_length + size - 1) / size;
}

// `rows` rows of one head, from row `first` of batch entry `batch`.
struct HeadRows {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t first = 0;
  std::int64_t rows = 0;
};
Matrix head_matrix(const RowsView& view, DType dtype, std::int64_t head_dim, const HeadRows& at) {
  const std::int64_t elements = at.batch * view.batch_stride + at.first * view.row_stride + at.head * head_dim;
  return {static_cast<std::byte*>(view.data) + static_cast<std::size_t>(elements) * size_of(dtype),
          dtype,
          at.rows,
          head_dim,
          view.row_stride,
          false};
}

Matrix transposed(Matrix matrix) {
  matrix.transposed = !matrix.transposed;
  return matrix;
}

// Pieces of one thread's scratch memory, which grows to the largest need and stays.
class Scratch {
 public:
  explicit Scratch(std::size_t size_bytes) {
    thread_local std::vector<std::byte> memory;
    if (memory.size() < size_bytes + kAlignment) {
      memory.resize(size_bytes + kAlignment);
    }
    next_ = memory.data() + (-reinterpret_cast<std::uintptr_t>(memory.data()) & (kAlignment - 1));
    left_bytes_ = size_bytes;
  }
  [[nodiscard]] Matrix take(std::int64_t rows, std::int64_t columns, DType dtype) {
    const Matrix matrix{next_, dtype, rows, columns, columns, false};
    const std::size_t bytes = size_of_matrix(rows, columns, dtype);
    assert(bytes <= left_bytes_);
    next_ += bytes;
    left_bytes_ -= bytes;
    return matrix;
  }
  [[nodiscard]] static std::size_t size_of_matrix(std::int64_t rows, std::int64_t columns, DType dtype) {
    const std::size_t bytes = static_cast<std::size_t>(rows * columns) * size_of(dtype);
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  std::byte* next_;
  std::size_t left_bytes_;
};

// The first `rows` x `columns` of a scratch matrix, packed.
Matrix corner(const Matrix& matrix, std::int64_t rows, std::int64_t columns) {
  return {matrix.data, matrix.dtype, rows, columns, columns, false};
}

ProbabilityDropout dropout_of(const Dropout& dropout, const AttentionShape& shape, const HeadRows& query) {
  const std::int64_t row = (query.batch * shape.heads + query.head) * shape.query_length + query.first;
  return {dropout, static_cast<std::uint64_t>(row * shape.key_length), shape.key_length};
}

void store_rows(const Matrix& from, const Matrix& to) {
  for (std::int64_t row = 0; row < from.rows; ++row) {
    const float* source = static_cast<const float*>(from.data) + row * from.stride;
    if (to.dtype == DType::kF32) {
      std::memcpy(static_cast<float*>(to.data) + row * to.stride, source,
                  static_cast<std::size_t>(from.columns) * sizeof(float));
    } else {
      with_narrow_type(to.dtype, [&](auto type) {
        using T = decltype(type);
        std::transform(source, source + from.columns, static_cast<T*>(to.data) + row * to.stride,
                       [](float value) { return T(value); });
      });
    }
  }
}

void forward_block(const AttentionForward& args, GemmCache& gemms, std::int64_t batch, std::int64_t head,
                   std::int64_t index) {
  const AttentionShape& shape = args.shape;
  const Block block = block_of(shape, index);
  const std::int64_t kv_head = head * shape.kv_heads / shape.heads;
  const HeadRows query{batch, head, block.first, block.rows};
  const HeadRows keys{batch, kv_head, 0, block.keys};
  Scratch scratch(attention_forward_scratch_bytes(shape, args.dtype));
  const Matrix scores = scratch.take(block.rows, block.keys, DType::kF32);
  const Matrix probabilities = args.dtype == DType::kF32 ? scores : scratch.take(block.rows, block.keys, args.dtype);

  gemms.run_here({.a = head_matrix(args.q, args.dtype, shape.head_dim, query),
                  .b = transposed(head_matrix(args.k, args.dtype, shape.head_dim, keys)),
                  .d = scores});
  SoftmaxRows softmax;
  softmax.rows = block.rows;
  softmax.columns = block.keys;
  softmax.first_length = block.first_length;
  softmax.scale = shape.scale;
  softmax.scores = static_cast<float*>(scores.data);
  softmax.score_stride = scores.stride;
  softmax.dtype = args.dtype;
  softmax.probabilities = probabilities.data;
  softmax.probability_stride = probabilities.stride;
  if (args.log_sum_exp.is_defined()) {
    softmax.log_sum_exp =
        args.log_sum_exp.data<float>() + (batch * shape.heads + head) * shape.query_length + block.first;
  }
  softmax.dropout = dropout_of(args.dropout, shape, query);
  softmax_rows(softmax);
  gemms.run_here({.a = probabilities,
                  .b = head_matrix(args.v, args.dtype, shape.head_dim, keys),
                  .d = head_matrix(args.out, args.dtype, shape.head_dim, query)});
}

// What the backward pass of one key head keeps over its query heads and blocks.
struct BackwardScratch {
  Matrix scores, dprobabilities;  // f32
  Matrix probabilities, dscores;  // working dtype
  Matrix dk, dv;                  // f32 sums
  Matrix delta;                   // f32
};

BackwardScratch backward_scratch(const AttentionShape& shape, DType dtype) {
  const std::int64_t rows = block_rows(shape.query_length);
  const std::int64_t keys = shape.key_capacity;
  const bool narrow = dtype != DType::kF32;
  Scratch scratch(attention_backward_scratch_bytes(shape, dtype));
  BackwardScratch result;
  result.scores = scratch.take(rows, keys, DType::kF32);
  result.dprobabilities = scratch.take(rows, keys, DType::kF32);
  result.probabilities = narrow ? scratch.take(rows, keys, dtype) : result.scores;
  result.dscores = narrow ? scratch.take(rows, keys, dtype) : result.dprobabilities;
  result.dk = scratch.take(keys, shape.head_dim, DType::kF32);
  result.dv = scratch.take(keys, shape.head_dim, DType::kF32);
  result.delta = scratch.take(1, rows, DType::kF32);
  return result;
}

// `first`: this block sets dk and dv, later ones add to them.
void backward_block(const AttentionBackward& args, GemmCache& gemms, const BackwardScratch& scratch,
                    const HeadRows& query, const Block& block, bool first) {
  const AttentionShape& shape = args.shape;
  const std::int64_t kv_head = query.head * shape.kv_heads / shape.heads;
  const HeadRows keys{query.batch, kv_head, 0, block.keys};
  const auto head_rows = [&](const RowsView& view, const HeadRows& at) {
    return head_matrix(view, args.dtype, shape.head_dim, at);
  };
  const Matrix dout = head_rows(args.dout, query);
  const Matrix out = head_rows(args.out, query);
  const Matrix scores = corner(scratch.scores, block.rows, block.keys);
  const Matrix dprobabilities = corner(scratch.dprobabilities, block.rows, block.keys);
  const Matrix probabilities = corner(scratch.probabilities, block.rows, block.keys);
  const Matrix dscores = corner(scratch.dscores, block.rows, block.keys);
  auto* delta = static_cast<float*>(scratch.delta.data);

  gemms.run_here({.a = head_rows(args.q, query), .b = transposed(head_rows(args.k, keys)), .d = scores});
  gemms.run_here({.a = dout, .b = transposed(head_rows(args.v, keys)), .d = dprobabilities});
  row_dots({.rows = block.rows,
            .columns = shape.head_dim,
            .dtype = args.dtype,
            .a = out.data,
            .a_stride = out.stride,
            .b = dout.data,
            .b_stride = dout.stride,
            .dots = delta});
  SoftmaxBackwardRows softmax;
  softmax.rows = block.rows;
  softmax.columns = block.keys;
  softmax.first_length = block.first_length;
  softmax.scale = shape.scale;
  softmax.scores = static_cast<const float*>(scores.data);
  softmax.score_stride = scores.stride;
  softmax.dprobabilities = static_cast<const float*>(dprobabilities.data);
  softmax.dprobability_stride = dprobabilities.stride;
  softmax.log_sum_exp =
      args.log_sum_exp.data<float>() + (query.batch * shape.heads + query.head) * shape.query_length + query.first;
  softmax.delta = delta;
  softmax.dtype = args.dtype;
  softmax.probabilities = probabilities.data;
  softmax.probability_stride = probabilities.stride;
  softmax.dscores = dscores.data;
  softmax.dscore_stride = dscores.stride;
  softmax.dropout = dropout_of(args.dropout, shape, query);
  softmax_backward_rows(softmax);

  gemms.run_here({.a = transposed(probabilities),
                  .b = dout,
                  .d = corner(scratch.dv, block.keys, shape.head_dim),
                  .bias = nullptr,
                  .accumulate = !first});
  gemms.run_here({.a = transposed(dscores),
                  .b = head_rows(args.q, query),
                  .d = corner(scratch.dk, block.keys, shape.head_dim),
                  .bias = nullptr,
                  .accumulate = !first});
  gemms.run_here({.a = dscores, .b = head_rows(args.k, keys), .d = head_rows(args.dq, query)});
}

// All query heads that share one key head. The last block sees every key, so it goes first and sets the sums.
void backward_kv_head(const AttentionBackward& args, GemmCache& gemms, std::int64_t batch, std::int64_t kv_head) {
  const AttentionShape& shape = args.shape;
  const BackwardScratch scratch = backward_scratch(shape, args.dtype);
  const std::int64_t group = shape.heads / shape.kv_heads;
  bool first = true;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (std::int64_t index = block_count(shape) - 1; index >= 0; --index) {
      const Block block = block_of(shape, index);
      backward_block(args, gemms, scratch, {batch, head, block.first, block.rows}, block, first);
      first = false;
    }
  }
  const HeadRows keys{batch, kv_head, 0, shape.key_length};
  store_rows(corner(scratch.dk, shape.key_length, shape.head_dim),
             head_matrix(args.dk, args.dtype, shape.head_dim, keys));
  store_rows(corner(scratch.dv, shape.key_length, shape.head_dim),
             head_matrix(args.dv, args.dtype, shape.head_dim, keys));
}

}  // namespace

std::size_t attention_forward_scratch_bytes(const AttentionShape& shape, DType dtype) {
  const std::int64_t rows = std::min(block_rows(shape.query_length), shape.query_length);
  const std::int64_t keys = shape.key_capacity;
  return Scratch::size_of_matrix(rows, keys, DType::kF32) +
         (dtype == DType::kF32 ? 0 : Scratch::size_of_matrix(rows, keys, dtype));
}

std::size_t attention_backward_scratch_bytes(const AttentionShape& shape, DType dtype) {
  const std::int64_t rows = block_rows(shape.query_length);
  const std::int64_t keys = shape.key_capacity;
  return 2 * Scratch::size_of_matrix(rows, keys, DType::kF32) +
         (dtype == DType::kF32 ? 0 : 2 * Scratch::size_of_matrix(rows, keys, dtype)) +
         2 * Scratch::size_of_matrix(keys, shape.head_dim, DType::kF32) + Scratch::size_of_matrix(1, rows, DType::kF32);
}

void attention_forward(const AttentionForward& args, GemmCache& gemms, ThreadPool& pool) {
  const std::int64_t blocks = block_count(args.shape);
  const std::int64_t tasks = args.shape.batch * args.shape.heads * blocks;
  pool.parallel_for(static_cast<std::size_t>(tasks), [&](std::size_t task) {
    const auto t = static_cast<std::int64_t>(task);
    forward_block(args, gemms, t / blocks / args.shape.heads, t / blocks % args.shape.heads, t % blocks);
  });
}

void attention_backward(const AttentionBackward& args, GemmCache& gemms, ThreadPool& pool) {
  const std::int64_t tasks = args.shape.batch * args.shape.kv_heads;
  if (args.shape.query_length == 0) {
    return;
  }
  pool.parallel_for(static_cast<std::size_t>(tasks), [&](std::size_t task) {
    const auto t = static_cast<std::int64_t>(task);
    backward_kv_head(args, gemms, t / args.shape.kv_heads, t % args.shape.kv_heads);
  });
}

}  // namespace lockstep::cpu
