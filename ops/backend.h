// The kernel set that a device provides. Ops check shapes and record gradients; a Backend computes.
//
// All tensors, spans and views of a call lie on the backend's device, except where said; tensors are dense and
// row-major, and outputs never alias inputs except where said. A GPU's calls return before they are done and are
// computed in order: what the host reads goes through copy(). "Working dtype" is f32, bf16 or f16, the same for all
// such tensors of a call; sums, means, exponentials and gradients of parameters are computed and kept in f32.
//
// Results are a pure function of the inputs: they do not depend on the number of threads, on memory addresses or on
// what ran before. Where values are reduced, the order is fixed by the shape alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/random.h"
#include "base/thread_pool.h"
#include "ops/tensor.h"

namespace lockstep {

// One operand of a matrix product: `rows` x `columns` elements, `stride` elements between the starts of consecutive
// rows, as they lie in memory; `transposed` says that the product uses the transpose.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kF32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;
  bool transposed = false;
};

// What a product goes through on its way out, v being a b + bias:
enum class Epilogue : std::uint8_t {
  kNone,          // d = v
  kGelu,          // d = gelu(v), before = v
  kGeluGradient,  // d = v * gelu'(before)
};

// d[m, n] = a[m, k] b[k, n] + bias[n], or d += a b when `accumulate`. a and b share a working dtype; d is f32 or
// that dtype; bias (optional, not with accumulate) has a's dtype. The element sums run in f32. With an epilogue d has
// a's dtype, and like it `before` is dense.
struct Gemm {
  Matrix a;
  Matrix b;
  Matrix d;
  const void* bias = nullptr;
  bool accumulate = false;
  Epilogue epilogue = Epilogue::kNone;
  Tensor before = {};  // [m, n]; see Epilogue
};

// Where dropout draws from: element i is kept when its random word says so. `probability` 0 switches it off.
struct Dropout {
  float probability = 0;
  RandomKey key;
};

// Element i gets bound * (2 u - 1) added, u being word i % 4 of philox(key, i / 4) in [0, 1).
struct Noise {
  float bound = 0;
  RandomKey key;
};

// Columns of matrices of the working dtype: y = x * magnitude / norm + bias, a norm of 0 counting as the magnitude.
struct ColumnScale {
  Matrix x;          // [N, C]
  Matrix y;          // out [N, C]; may be x
  Tensor magnitude;  // [C] working dtype; undefined: y = x + bias
  Tensor norms;      // [C] working dtype
  Tensor bias;       // [C] working dtype, may be undefined
};

// Its gradients. Norms count as constants.
struct ColumnScaleGradient {
  ColumnScale scale;  // without its y
  Matrix dy;          // [N, C] in place: becomes dy * magnitude / norm
  Tensor dmagnitude;  // out [C] f32: the sum over rows of dy x / norm, where that is not 0
  bool accumulate = false;
};

enum class NormKind : std::uint8_t { kLayer, kRms };

// sum[N, C] = x + dropout(branch)      (sum = x when branch is undefined; then `sum` is not written and may be
// undefined) y[N, C]   = (sum - mean) * rstd * gain + bias     kLayer: Ba, Kiros, Hinton 2016; population variance
//           = sum * rstd * gain                      kRms: Zhang, Sennrich 2019; rstd = 1 / sqrt(mean(sum^2) + eps)
struct NormForward {
  NormKind kind = NormKind::kLayer;
  float epsilon = 1e-5F;
  Tensor x;       // [N, C] working dtype
  Tensor branch;  // [N, C] or undefined
  Dropout dropout;
  Tensor gain;  // [C] working dtype
  Tensor bias;  // [C] working dtype, kLayer only, may be undefined
  Tensor sum;   // out [N, C]
  Tensor y;     // out [N, C]
  Tensor mean;  // out [N] f32, kLayer only
  Tensor rstd;  // out [N] f32
};

// Gradients of NormForward. `sum` is its input to the normalisation (x itself when there was no branch).
struct NormBackward {
  NormKind kind = NormKind::kLayer;
  Tensor dy;                           // [N, C]
  Tensor dsum;                         // [N, C]: gradient that reaches `sum` past the norm; may be undefined
  Tensor sum;                          // [N, C]
  Tensor gain;                         // [C]
  Tensor mean;                         // [N], kLayer only
  Tensor rstd;                         // [N]
  Tensor dx;                           // out [N, C]: dsum + gradient through the norm; may be dsum's own memory
  Tensor dgain;                        // out [C] f32
  Tensor dbias;                        // out [C] f32, undefined without bias
  bool accumulate_parameters = false;  // add to dgain and dbias instead of replacing them
};

// What attention reads and writes. Row t of batch entry b of q starts at q + (b * q_batch_stride + t * q_row_stride)
// elements and holds `heads` vectors of `head_dim`; k and v likewise with `kv_heads`. Query head h uses key head h *
// kv_heads / heads.
struct AttentionShape {
  std::int64_t batch = 0;
  std::int64_t query_length = 0;
  std::int64_t key_length = 0;  // >= query_length; query t sees keys 0 .. key_length - query_length + t (causal)
  std::int64_t key_capacity =
      0;  // >= key_length; rows of k and v from key_length on are readable and finite (a cache being filled)
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float scale = 1;  // of the scores, 1 / sqrt(head_dim)
};

// How long sequences are that follow one another without a gap.
using SequenceLengths = std::span<const std::int64_t>;

struct RowsView {
  void* data = nullptr;
  std::int64_t row_stride = 0;    // elements
  std::int64_t batch_stride = 0;  // elements
};

struct AttentionForward {
  AttentionShape shape;
  DType dtype = DType::kF32;
  RowsView q, k, v;
  Dropout dropout;     // on the probabilities
  RowsView out;        // [batch, query_length, heads * head_dim]
  Tensor log_sum_exp;  // out [batch, heads, query_length] f32; undefined when no gradient will be asked for
  // Where it is not empty, the rows are these sequences', attention stays within each, and the shape is that of all of
  // them as one: batch 1, query_length their sum. log_sum_exp then holds [heads, length] of one after another. Each
  // drops by a stream of its own: key_of_sequence() in ops/sequences.h.
  SequenceLengths lengths = {};
};

struct AttentionBackward {
  AttentionShape shape;
  DType dtype = DType::kF32;
  RowsView q, k, v, out, dout;
  Dropout dropout;
  Tensor log_sum_exp;
  RowsView dq, dk, dv;           // out
  SequenceLengths lengths = {};  // as above
};

// Rotary position embedding (Su et al. 2021), the "rotate half" form of Llama: pairs (i, i + head_dim / 2).
// In place on `heads` vectors of head_dim at the start of each row; row r has position first_position + r %
// rows_per_sequence, or, where there are lengths, first_position + its place in its sequence.
struct Rope {
  Tensor rows;  // [N, row width] working dtype
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t rows_per_sequence = 0;
  std::int64_t first_position = 0;
  Tensor inverse_frequency;  // [head_dim / 2] f32, on the host
  bool inverse = false;      // rotate back: the gradient
  SequenceLengths lengths = {};
};

// One chunk of the head: row i of `logits` becomes d(loss)/d(logits) = scale * (softmax - onehot(target)), and
// losses[i] becomes -log softmax(target). Rows with target -1 get loss 0 and gradient 0.
struct CrossEntropy {
  Tensor logits;                          // [R, >= V], as logits_shape() says; dlogits may share its memory
  std::int64_t vocabulary = 0;            // V: what follows in a row counts for nothing
  std::span<const std::int32_t> targets;  // [R], on the host
  float scale = 1;
  Tensor dlogits;  // out, as logits, of a working dtype; undefined when only losses are wanted
  Tensor losses;   // out [R] f32
  // Out [R] i32: the token of the largest logit, the lowest of several; -1 in rows with target -1 and where the loss is
  // NaN. Undefined when nobody asks.
  Tensor likeliest = {};
};

// AdamW with decoupled weight decay (Loshchilov, Hutter 2019) on one range of the flat parameters, all f32.
struct AdamW {
  std::span<float> master;
  std::span<float> exp_avg;
  std::span<float> exp_avg_sq;
  std::span<const float> gradient;
  float gradient_scale = 1;  // clipping
  float learning_rate = 0;
  float beta1 = 0;
  float beta2 = 0;
  float epsilon = 0;
  float weight_decay = 0;
  float bias_correction1 = 1;  // 1 - beta1^step
  float bias_correction2 = 1;  // 1 - beta2^step
};

inline constexpr std::size_t kSquaresBlock = 4096;
[[nodiscard]] constexpr std::size_t squares_blocks(std::size_t elements) {
  return (elements + kSquaresBlock - 1) / kSquaresBlock;
}

class Backend {
 public:
  virtual ~Backend() = default;

  [[nodiscard]] virtual Device device() const = 0;
  // For work of the host that is cut into chunks: initialisation, copies.
  [[nodiscard]] virtual ThreadPool& pool() = 0;

  // Zeroed memory on the device, aligned to 64 bytes or more. Throws Error(kIo, kDevice) when there is none left.
  [[nodiscard]] virtual Buffer allocate(std::size_t size_bytes) = 0;
  // Copies between the host and the device or within one of them; dtypes and counts are equal. Comes after everything
  // that was asked for before; where one side is the host's, it is done when this returns.
  virtual void copy(const BufferView& from, const BufferView& to) = 0;
  // Returns when everything that was asked for is done. Throws Error(kDevice) when it failed.
  virtual void synchronize() = 0;
  // Of a GPU's memory, by this process; 0 for the CPU, whose memory the system knows about.
  [[nodiscard]] virtual std::size_t allocated_bytes() const = 0;
  // How many rows of a head's logits to have at a time, which depends on the vocabulary and the working dtype alone,
  // how far apart they lie, and what they are: f32 or the working dtype.
  struct LogitsShape {
    std::int64_t rows = 0;
    std::int64_t stride = 0;
    DType dtype = DType::kF32;
  };
  [[nodiscard]] virtual LogitsShape logits_shape(std::int64_t vocabulary, DType working) const = 0;

  // Whether the device multiplies matrices of the working dtype itself. Where it does not, a CPU computes products in
  // f32 and rounds them: right, but slower than f32. A GPU, as those older than Ampere with bf16, throws
  // Error(kUnsupported).
  [[nodiscard]] virtual bool has_native(DType working) const = 0;
  // Something that costs time and that a user can change, said once; empty most of the time.
  [[nodiscard]] virtual std::string take_note() { return {}; }

  // A sequence of calls that can be asked for again at less cost than the calls have.
  class Recording {
   public:
    virtual ~Recording() = default;
    // Asks for all of it again. Throws what the calls throw.
    virtual void run() = 0;
  };
  // Calls `work`, which asks for work of the device without copying to or from the host or waiting, and which was
  // called before, so that all memory is there. In each run of the recording, the ids (of embeddings and losses) are
  // what the spans given for them hold then, and what host code `work` consists of is left out but for between();
  // everything else is as it was. The memory that was used stays with the recording's owner. Null where a backend has
  // no use for it: `work` was called all the same.
  [[nodiscard]] virtual std::unique_ptr<Recording> record(const std::function<void()>& work) {
    work();
    return nullptr;
  }
  // Calls `host_work`, which may also ask for work of the device. Within record(), runs of the recording call it, too.
  virtual void between(const std::function<void()>& host_work) { host_work(); }

  virtual void gemm(const Gemm& gemm) = 0;
  // Products that do not need one another, side by side: on a CPU each is computed by one thread.
  virtual void gemm_each(std::span<const Gemm> products) = 0;

  virtual void norm_forward(const NormForward& norm) = 0;
  virtual void norm_backward(const NormBackward& norm) = 0;

  virtual void attention_forward(const AttentionForward& attention) = 0;
  virtual void attention_backward(const AttentionBackward& attention) = 0;

  // Copies `rows` rows of `columns` elements, of one batch entry.
  virtual void copy_rows(const RowsView& from, const RowsView& to, std::int64_t rows, std::int64_t columns,
                         DType dtype) = 0;

  virtual void rope(const Rope& rope) = 0;

  // y = x * keep / (1 - p); its own gradient. y may be x. Element i of the tensor uses word i % 4 of philox(key, i / 4)
  // and is kept when uniform_float(word) >= p.
  virtual void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y) = 0;

  // y = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), GPT-2's "gelu_new".
  virtual void gelu_forward(const Tensor& x, const Tensor& y) = 0;
  virtual void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) = 0;  // dx may be dy

  // y[N, F] = silu(gate) * up, with gate_up[N, 2 F] holding gate in its first F columns and up in the rest (Shazeer
  // 2020).
  virtual void swiglu_forward(const Tensor& gate_up, const Tensor& y) = 0;
  virtual void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up) = 0;

  // out = a + b; out may be a or b.
  virtual void add(const Tensor& a, const Tensor& b, const Tensor& out) = 0;

  // y = factor * x; y may be x.
  virtual void scale(const Tensor& x, float factor, const Tensor& y) = 0;

  // norms[r] = |row r of x|, x being f32, rounded to the dtype of `norms`.
  virtual void row_norms(const Matrix& x, const Tensor& norms) = 0;
  virtual void scale_columns(const ColumnScale& scale) = 0;
  virtual void scale_columns_gradient(const ColumnScaleGradient& gradient) = 0;

  // In place.
  virtual void add_noise(const Noise& noise, const Tensor& x) = 0;

  // The values of a packed matrix, rounded to the dtype of `out`, which has its shape.
  virtual void unpack(const PackedWeight& weight, const Tensor& out) = 0;

  // x[N, C] = tokens_table[token] + positions_table[position]; the position of row r is first_position + r %
  // rows_per_sequence. positions_table may be undefined.
  struct Embedding {
    std::span<const std::int32_t> tokens;  // [N], on the host
    std::int64_t rows_per_sequence = 0;
    std::int64_t first_position = 0;
  };
  virtual void embedding_forward(const Embedding& embedding, const Tensor& tokens_table, const Tensor& positions_table,
                                 const Tensor& x) = 0;
  // dtokens_table[V, C] and dpositions_table[P, C] (f32; the latter may be undefined) += the rows of dx, added in the
  // order of the rows.
  virtual void embedding_backward(const Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                                  const Tensor& dpositions_table) = 0;

  virtual void cross_entropy(const CrossEntropy& cross_entropy) = 0;

  // sums[C] (f32) = the sum over the rows of x[N, C], in fixed blocks of rows; added to sums when `accumulate`.
  virtual void column_sum(const Tensor& x, const Tensor& sums, bool accumulate) = 0;

  // The sums of squares, in f64, of the blocks of kSquaresBlock elements that `values` is made of; the last may be
  // shorter. Their sum in order is the sum of squares, whoever computed which. `block_sums` lies on the host, and holds
  // them when this returns.
  virtual void sums_of_squares(std::span<const float> values, std::span<double> block_sums) = 0;
  // out[i] = a[i] + b[i]; out may be a or b.
  virtual void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out) = 0;
  virtual void adamw(const AdamW& adamw) = 0;
  // Conversion between f32 and bf16 or f16 (round to nearest even), or a copy when the dtypes are equal.
  virtual void convert(const BufferView& from, const BufferView& to) = 0;
  virtual void fill_zero(const Tensor& x) = 0;
};

// The CPU's kernels on `threads` threads, the caller's included.
[[nodiscard]] std::unique_ptr<Backend> make_cpu_backend(int threads);

// A GPU's kernels; `threads` are the host's, for pool(). With `tf32`, products of f32 round their factors to TF32, 10
// bits of mantissa, and take the tensor cores. One in a process. Throws Error(kUnsupported) that says why this GPU
// cannot be used, or that this program was built without CUDA.
[[nodiscard]] std::unique_ptr<Backend> make_cuda_backend(int index, int threads, bool tf32 = false);

}  // namespace lockstep
