// The CPU's kernel set: each call goes to the file that its kernel lives in.
#include <algorithm>
#include <cassert>
#include <cstring>
#include <memory>

#include "ops/backend.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/column_scale.h"
#include "ops/cpu/cross_entropy.h"
#include "ops/cpu/dispatch.h"
#include "ops/cpu/elementwise.h"
#include "ops/cpu/embedding.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/norm.h"
#include "ops/cpu/optimizer.h"
#include "ops/cpu/reduce.h"
#include "ops/cpu/rope.h"
#include "ops/sequences.h"

namespace lockstep {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : pool_(threads) {}

  [[nodiscard]] Device device() const override { return {}; }
  [[nodiscard]] ThreadPool& pool() override { return pool_; }

  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return Buffer::allocate(size_bytes); }
  void copy(const BufferView& from, const BufferView& to) override {
    assert(from.dtype == to.dtype && from.count == to.count);
    if (from.count > 0) {
      std::memcpy(to.data, from.data, from.size_bytes());
    }
  }
  void synchronize() override {}
  [[nodiscard]] std::size_t allocated_bytes() const override { return 0; }
  // What the caches hold; but so many rows at least, because each chunk passes over the head's weights and their
  // gradient once, which takes longer than the products when it has few.
  [[nodiscard]] LogitsShape logits_shape(std::int64_t vocabulary, DType /*working*/) const override {
    constexpr std::int64_t kBytes = std::int64_t{8} << 20;
    constexpr std::int64_t kMinRows = 256;
    const std::int64_t rows = kBytes / (vocabulary * static_cast<std::int64_t>(sizeof(float)));
    return {std::max(kMinRows, rows / kMinRows * kMinRows), vocabulary};
  }

  [[nodiscard]] bool has_native(DType working) const override { return gemms_.has_native(working); }

  void gemm(const Gemm& gemm) override {
    if (gemm.epilogue == Epilogue::kNone) {
      gemms_.run(gemm, pool_);
      return;
    }
    const Tensor d(gemm.d.data, gemm.before.shape(), gemm.d.dtype);
    Gemm product = gemm;
    product.epilogue = Epilogue::kNone;
    if (gemm.epilogue == Epilogue::kGelu) {
      product.d.data = gemm.before.data();
      gemms_.run(product, pool_);
      gelu_forward(gemm.before, d);
    } else {
      gemms_.run(product, pool_);
      gelu_backward(gemm.before, d, d);
    }
  }
  void gemm_each(std::span<const Gemm> products) override { gemms_.run_each(products, pool_); }

  void norm_forward(const NormForward& norm) override { cpu::norm_forward(norm, pool_); }
  void norm_backward(const NormBackward& norm) override { cpu::norm_backward(norm, pool_); }

  void attention_forward(const AttentionForward& attention) override {
    for_each_sequence(attention, [this](const AttentionForward& one) { cpu::attention_forward(one, gemms_, pool_); });
  }
  void attention_backward(const AttentionBackward& attention) override {
    for_each_sequence(attention, [this](const AttentionBackward& one) { cpu::attention_backward(one, gemms_, pool_); });
  }

  void copy_rows(const RowsView& from, const RowsView& to, std::int64_t rows, std::int64_t columns,
                 DType dtype) override {
    const auto at = [&](const RowsView& view, std::int64_t row) {
      return static_cast<std::byte*>(view.data) + static_cast<std::size_t>(row * view.row_stride) * size_of(dtype);
    };
    const cpu::Chunks chunks = cpu::chunks_of_rows(rows, columns);
    pool_.parallel_for(chunks.count(), [&](std::size_t chunk) {
      for (std::size_t i = chunks.begin(chunk); i < chunks.begin(chunk) + chunks.size(chunk); ++i) {
        const auto row = static_cast<std::int64_t>(i);
        std::memcpy(at(to, row), at(from, row), static_cast<std::size_t>(columns) * size_of(dtype));
      }
    });
  }
  void rope(const Rope& rope) override { cpu::rope(rope, pool_); }
  void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y) override {
    cpu::dropout(dropout, x, y, pool_);
  }
  void gelu_forward(const Tensor& x, const Tensor& y) override { cpu::gelu_forward(x, y, pool_); }
  void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) override {
    cpu::gelu_backward(x, dy, dx, pool_);
  }
  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override { cpu::swiglu_forward(gate_up, y, pool_); }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up) override {
    cpu::swiglu_backward(gate_up, dy, dgate_up, pool_);
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& out) override { cpu::add(a, b, out, pool_); }
  void scale(const Tensor& x, float factor, const Tensor& y) override { cpu::scale(x, factor, y, pool_); }
  void row_norms(const Matrix& x, const Tensor& norms) override { cpu::row_norms(x, norms, pool_); }
  void scale_columns(const ColumnScale& scale) override { cpu::scale_columns(scale, pool_); }
  void scale_columns_gradient(const ColumnScaleGradient& gradient) override {
    cpu::scale_columns_gradient(gradient, pool_);
  }
  void add_noise(const Noise& noise, const Tensor& x) override { cpu::add_noise(noise, x, pool_); }
  void unpack(const PackedWeight& weight, const Tensor& out) override { cpu::unpack(weight, out, pool_); }

  void embedding_forward(const Embedding& embedding, const Tensor& tokens_table, const Tensor& positions_table,
                         const Tensor& x) override {
    cpu::embedding_forward(embedding, tokens_table, positions_table, x, pool_);
  }
  void embedding_backward(const Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                          const Tensor& dpositions_table) override {
    cpu::embedding_backward(embedding, dx, dtokens_table, dpositions_table, pool_);
  }

  void cross_entropy(const CrossEntropy& cross_entropy) override { cpu::cross_entropy(cross_entropy, pool_); }
  void column_sum(const Tensor& x, const Tensor& sums, bool accumulate) override {
    cpu::column_sum(x, sums, accumulate, pool_);
  }
  void sums_of_squares(std::span<const float> values, std::span<double> block_sums) override {
    cpu::sums_of_squares(values, block_sums, pool_);
  }
  void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out) override {
    cpu::add_f32(a, b, out, pool_);
  }
  void adamw(const AdamW& adamw) override { cpu::adamw(adamw, pool_); }
  void convert(const BufferView& from, const BufferView& to) override { cpu::convert(from, to, pool_); }
  void fill_zero(const Tensor& x) override { cpu::fill_zero(x, pool_); }

 private:
  ThreadPool pool_;
  cpu::GemmCache gemms_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) { return std::make_unique<CpuBackend>(threads); }

}  // namespace lockstep
