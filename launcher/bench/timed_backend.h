// A Backend that passes every call on and adds up where the time goes.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "ops/backend.h"

namespace lockstep {

// What a training step spends its time on.
enum class StepPart : std::uint8_t {
  kGemm,       // the products of the layers
  kAttention,  // with its own products, and RoPE
  kNorms,      // norms, and all that goes element by element: activations, residuals, dropout, embeddings, bias sums
  kHead,       // the products with the vocabulary, and the loss
  kOptimizer,  // norm of the gradient, AdamW, the narrow copy of the weights
  kSums,       // additions of micro-batches' gradients
};
inline constexpr std::size_t kStepParts = 6;
[[nodiscard]] std::string_view name_of(StepPart part);

// Which of the three products of a linear layer.
enum class Pass : std::uint8_t { kForward, kInputGradient, kWeightGradient };
[[nodiscard]] std::string_view name_of(Pass pass);

// A matrix product as it was asked for, without its data.
struct GemmCalls {
  Gemm gemm;
  bool has_bias = false;
  bool is_head = false;
  Pass pass = Pass::kForward;
  std::int64_t calls = 0;
  double ms = 0;

  [[nodiscard]] std::int64_t m() const { return gemm.d.rows; }
  [[nodiscard]] std::int64_t n() const { return gemm.d.columns; }
  [[nodiscard]] std::int64_t k() const { return gemm.a.transposed ? gemm.a.rows : gemm.a.columns; }
  // Of one call.
  [[nodiscard]] double flop() const;
};

class TimedBackend final : public Backend {
 public:
  explicit TimedBackend(std::unique_ptr<Backend> backend);
  // Which products are the head's: those with these weights, and the gradient of them that follows.
  void set_head(const Tensor& weight) { head_ = weight.data(); }

  // The same kernels, without being counted.
  [[nodiscard]] Backend& untimed() { return *backend_; }

  // Whether a call's time ends when the device has computed it, which a GPU otherwise does later.
  void set_waiting(bool waiting) { is_waiting_ = waiting; }

  // Forgets all times and calls.
  void reset();
  [[nodiscard]] double ms(StepPart part) const { return ms_[static_cast<std::size_t>(part)]; }
  // By shape and pass, in the order in which they first appeared.
  [[nodiscard]] const std::vector<GemmCalls>& gemms() const { return gemms_; }

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

  // What runs again is not counted. Calls that are waited for cannot be recorded.
  [[nodiscard]] std::unique_ptr<Recording> record(const std::function<void()>& work) override {
    return is_waiting_ ? Backend::record(work) : backend_->record(work);
  }
  void between(const std::function<void()>& host_work) override { backend_->between(host_work); }

  void gemm(const Gemm& gemm) override;
  void gemm_each(std::span<const Gemm> products) override;
  void norm_forward(const NormForward& norm) override;
  void norm_backward(const NormBackward& norm) override;
  void attention_forward(const AttentionForward& attention) override;
  void attention_backward(const AttentionBackward& attention) override;
  void rope(const Rope& rope) override;
  void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y) override;
  void gelu_forward(const Tensor& x, const Tensor& y) override;
  void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) override;
  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override;
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up) override;
  void add(const Tensor& a, const Tensor& b, const Tensor& out) override;
  void scale(const Tensor& x, float factor, const Tensor& y) override;
  void row_norms(const Matrix& x, const Tensor& norms) override;
  void scale_columns(const ColumnScale& scale) override;
  void scale_columns_gradient(const ColumnScaleGradient& gradient) override;
  void add_noise(const Noise& noise, const Tensor& x) override;
  void unpack(const PackedWeight& weight, const Tensor& out) override;
  void embedding_forward(const Embedding& embedding, const Tensor& tokens_table, const Tensor& positions_table,
                         const Tensor& x) override;
  void embedding_backward(const Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                          const Tensor& dpositions_table) override;
  void cross_entropy(const CrossEntropy& cross_entropy) override;
  void column_sum(const Tensor& x, const Tensor& sums, bool accumulate) override;
  void sums_of_squares(std::span<const float> values, std::span<double> block_sums) override;
  void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out) override;
  void adamw(const AdamW& adamw) override;
  void convert(const BufferView& from, const BufferView& to) override;
  void fill_zero(const Tensor& x) override;

 private:
  template <typename Call>
  void timed(StepPart part, const Call& call);
  // Sets `pass` and `is_head` of a call and remembers where the step is.
  void place(GemmCalls& call);

  std::unique_ptr<Backend> backend_;
  bool is_waiting_ = false;
  const void* head_ = nullptr;
  std::array<double, kStepParts> ms_ = {};
  std::vector<GemmCalls> gemms_;
  bool loss_since_embedding_ = false;      // the layers go backwards
  bool loss_since_head_gradient_ = false;  // so does the head
  bool head_gradient_is_next_ = false;
};

}  // namespace lockstep
