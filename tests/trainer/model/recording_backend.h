// A Backend that computes as another does and notes from where dropout draws.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "ops/backend.h"

namespace lockstep {

class RecordingBackend final : public Backend {
 public:
  explicit RecordingBackend(int threads) : backend_(make_cpu_backend(threads)) {}

  using Key = std::pair<std::uint32_t, std::uint32_t>;
  std::vector<Key> forward_keys;   // in the order of the calls
  std::vector<Key> backward_keys;  // of attention, whose gradient draws again

  [[nodiscard]] Device device() const override { return backend_->device(); }
  [[nodiscard]] ThreadPool& pool() override { return backend_->pool(); }
  [[nodiscard]] bool has_native(DType working) const override { return backend_->has_native(working); }
  [[nodiscard]] std::string take_note() override { return backend_->take_note(); }
  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return backend_->allocate(size_bytes); }
  void copy(const BufferView& from, const BufferView& to) override { backend_->copy(from, to); }
  void synchronize() override { backend_->synchronize(); }
  [[nodiscard]] std::size_t allocated_bytes() const override { return backend_->allocated_bytes(); }
  [[nodiscard]] LogitsShape logits_shape(std::int64_t vocabulary, DType working) const override {
    return backend_->logits_shape(vocabulary, working);
  }
  void copy_rows(const RowsView& from, const RowsView& to, std::int64_t rows, std::int64_t columns,
                 DType dtype) override {
    backend_->copy_rows(from, to, rows, columns, dtype);
  }
  void gemm(const Gemm& gemm) override { backend_->gemm(gemm); }
  void gemm_each(std::span<const Gemm> products) override { backend_->gemm_each(products); }
  void norm_forward(const NormForward& norm) override {
    note(norm.dropout, forward_keys);
    backend_->norm_forward(norm);
  }
  void norm_backward(const NormBackward& norm) override { backend_->norm_backward(norm); }
  void attention_forward(const AttentionForward& attention) override {
    note(attention.dropout, forward_keys);
    backend_->attention_forward(attention);
  }
  void attention_backward(const AttentionBackward& attention) override {
    note(attention.dropout, backward_keys);
    backend_->attention_backward(attention);
  }
  void rope(const Rope& rope) override { backend_->rope(rope); }
  void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y) override {
    note(dropout, forward_keys);
    backend_->dropout(dropout, x, y);
  }
  void gelu_forward(const Tensor& x, const Tensor& y) override { backend_->gelu_forward(x, y); }
  void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) override {
    backend_->gelu_backward(x, dy, dx);
  }
  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override { backend_->swiglu_forward(gate_up, y); }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up) override {
    backend_->swiglu_backward(gate_up, dy, dgate_up);
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& out) override { backend_->add(a, b, out); }
  void row_norms(const Matrix& x, const Tensor& norms) override { backend_->row_norms(x, norms); }
  void scale_columns(const ColumnScale& scale) override { backend_->scale_columns(scale); }
  void scale_columns_gradient(const ColumnScaleGradient& gradient) override {
    backend_->scale_columns_gradient(gradient);
  }
  void scale(const Tensor& x, float factor, const Tensor& y) override { backend_->scale(x, factor, y); }
  void add_noise(const Noise& noise, const Tensor& x) override { backend_->add_noise(noise, x); }
  void unpack(const PackedWeight& weight, const Tensor& out) override { backend_->unpack(weight, out); }
  void embedding_forward(const Embedding& embedding, const Tensor& tokens_table, const Tensor& positions_table,
                         const Tensor& x) override {
    backend_->embedding_forward(embedding, tokens_table, positions_table, x);
  }
  void embedding_backward(const Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                          const Tensor& dpositions_table) override {
    backend_->embedding_backward(embedding, dx, dtokens_table, dpositions_table);
  }
  void cross_entropy(const CrossEntropy& cross_entropy) override { backend_->cross_entropy(cross_entropy); }
  void column_sum(const Tensor& x, const Tensor& sums, bool accumulate) override {
    backend_->column_sum(x, sums, accumulate);
  }
  void sums_of_squares(std::span<const float> values, std::span<double> block_sums) override {
    backend_->sums_of_squares(values, block_sums);
  }
  void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out) override {
    backend_->add_f32(a, b, out);
  }
  void adamw(const AdamW& adamw) override { backend_->adamw(adamw); }
  void convert(const BufferView& from, const BufferView& to) override { backend_->convert(from, to); }
  void fill_zero(const Tensor& x) override { backend_->fill_zero(x); }

 private:
  static void note(const Dropout& dropout, std::vector<Key>& keys) {
    if (dropout.probability > 0) {
      keys.emplace_back(dropout.key.k0, dropout.key.k1);
    }
  }
  std::unique_ptr<Backend> backend_;
};

}  // namespace lockstep
