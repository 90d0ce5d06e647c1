// A GPU's kernel set: each call goes to the file that its kernel lives in. Everything runs in compute_stream().
#include <cassert>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "base/cuda/runtime.h"
#include "base/error.h"
#include "ops/backend.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/cross_entropy.h"
#include "ops/cuda/elementwise.h"
#include "ops/cuda/embedding.h"
#include "ops/cuda/gemm.h"
#include "ops/cuda/id_upload.h"
#include "ops/cuda/matrices.h"
#include "ops/cuda/norm.h"
#include "ops/cuda/reduce.h"
#include "ops/cuda/scratch.h"
#include "ops/cuda/sdpa.h"
#include "ops/cuda/sequence_tables.h"

namespace lockstep {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(int index, int threads, bool tf32) : device_(selected(index)), pool_(threads), gemms_(tf32) {
    if (cuda::compute_capability() < cuda::Sdpa::kOldestCapability) {
      return;
    }
    try {
      sdpa_ = std::make_unique<cuda::Sdpa>(recorder_);
    } catch (const Error& error) {
      note_ = fmt::format("attention runs on Lockstep's own kernels, which are slower than cuDNN's: {}", error.what());
    }
  }

  [[nodiscard]] Device device() const override { return device_; }
  [[nodiscard]] ThreadPool& pool() override { return pool_; }
  [[nodiscard]] bool has_native(DType working) const override { return gemms_.has_native(working); }

  [[nodiscard]] std::string take_note() override {
    if (sdpa_ && !sdpa_->last_refusal().empty() && !refusal_noted_) {
      refusal_noted_ = true;
      return "attention runs on Lockstep's own kernels, since cuDNN does not take it: " + sdpa_->last_refusal();
    }
    return std::exchange(note_, {});
  }

  [[nodiscard]] Buffer allocate(std::size_t size_bytes) override { return cuda::allocate_device(size_bytes); }
  void copy(const BufferView& from, const BufferView& to) override {
    assert(from.dtype == to.dtype && from.count == to.count);
    cuda::check(cudaMemcpyAsync(to.data, from.data, from.size_bytes(), cudaMemcpyDefault, stream()), "copying");
    if (from.device != to.device) {
      synchronize();
    }
  }
  void synchronize() override { cuda::compute_stream().synchronize(); }
  [[nodiscard]] std::size_t allocated_bytes() const override { return cuda::allocated_device_bytes(); }
  [[nodiscard]] std::unique_ptr<Recording> record(const std::function<void()>& work) override {
    return recorder_.record(work);
  }
  void between(const std::function<void()>& host_work) override { recorder_.between(host_work); }

  // Large chunks fill the GPU; rows begin at multiples of 256 bytes, which the matrix units ask for. In bf16 and f16
  // the logits are as narrow as their gradients are in any case, which halves the way to memory and back.
  [[nodiscard]] LogitsShape logits_shape(std::int64_t vocabulary, DType working) const override {
    constexpr std::int64_t kBytes = std::int64_t{1} << 30;
    constexpr std::int64_t kMinRows = 256;
    constexpr std::int64_t kGranule = 128;
    const std::int64_t stride = (vocabulary + kGranule - 1) / kGranule * kGranule;
    const std::int64_t rows = kBytes / (stride * static_cast<std::int64_t>(size_of(working)));
    return {std::max(kMinRows, rows / kMinRows * kMinRows), stride, working};
  }

  void gemm(const Gemm& gemm) override { gemms_.run(gemm); }
  void gemm_each(std::span<const Gemm> products) override {
    for (const Gemm& product : products) {
      gemms_.run(product);
    }
  }

  void norm_forward(const NormForward& norm) override { cuda::norm_forward(norm, stream()); }
  void norm_backward(const NormBackward& norm) override { cuda::norm_backward(norm, scratch_, stream()); }

  void attention_forward(const AttentionForward& attention) override {
    check_width(attention.shape);
    if (!sdpa_ || !attention.lengths.empty() || !sdpa_->forward(attention)) {
      cuda::attention_forward(attention, sequences_, stream());
    }
  }
  void attention_backward(const AttentionBackward& attention) override {
    check_width(attention.shape);
    if (!sdpa_ || !attention.lengths.empty() || !sdpa_->backward(attention)) {
      cuda::attention_backward(attention, sequences_, scratch_, stream());
    }
  }

  void copy_rows(const RowsView& from, const RowsView& to, std::int64_t rows, std::int64_t columns,
                 DType dtype) override {
    const auto bytes = [&](std::int64_t elements) { return static_cast<std::size_t>(elements) * size_of(dtype); };
    cuda::check(cudaMemcpy2DAsync(to.data, bytes(to.row_stride), from.data, bytes(from.row_stride), bytes(columns),
                                  static_cast<std::size_t>(rows), cudaMemcpyDeviceToDevice, stream()),
                "copying rows");
  }
  void rope(const Rope& rope) override {
    require(rope.head_dim <= cuda::kWidestRotaryHead,
            "rotary_embedding: heads of {}; on a GPU they are at most {} wide", rope.head_dim, cuda::kWidestRotaryHead);
    cuda::rope(rope, rope.lengths.empty() ? nullptr : sequences_.places(rope.lengths), stream());
  }
  void dropout(const Dropout& dropout, const Tensor& x, const Tensor& y) override {
    cuda::dropout(dropout, x, y, stream());
  }
  void gelu_forward(const Tensor& x, const Tensor& y) override { cuda::gelu_forward(x, y, stream()); }
  void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) override {
    cuda::gelu_backward(x, dy, dx, stream());
  }
  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override { cuda::swiglu_forward(gate_up, y, stream()); }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up) override {
    cuda::swiglu_backward(gate_up, dy, dgate_up, stream());
  }
  void add(const Tensor& a, const Tensor& b, const Tensor& out) override { cuda::add(a, b, out, stream()); }
  void scale(const Tensor& x, float factor, const Tensor& y) override { cuda::scale(x, factor, y, stream()); }
  void row_norms(const Matrix& x, const Tensor& norms) override { cuda::row_norms(x, norms, stream()); }
  void scale_columns(const ColumnScale& scale) override { cuda::scale_columns(scale, stream()); }
  void scale_columns_gradient(const ColumnScaleGradient& gradient) override {
    cuda::scale_columns_gradient(gradient, scratch_, stream());
  }
  void add_noise(const Noise& noise, const Tensor& x) override { cuda::add_noise(noise, x, stream()); }
  void unpack(const PackedWeight& weight, const Tensor& out) override { cuda::unpack(weight, out, stream()); }

  void embedding_forward(const Embedding& embedding, const Tensor& tokens_table, const Tensor& positions_table,
                         const Tensor& x) override {
    cuda::embedding_forward(embedding, upload_(embedding.tokens, 0, tokens_table.dim(0)), tokens_table, positions_table,
                            x, stream());
  }
  void embedding_backward(const Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                          const Tensor& dpositions_table) override {
    cuda::embedding_backward(embedding, dx, dtokens_table, dpositions_table, upload_, scratch_, stream());
  }

  void cross_entropy(const CrossEntropy& cross_entropy) override {
    cuda::cross_entropy(cross_entropy, upload_(cross_entropy.targets, -1, cross_entropy.vocabulary), stream());
  }
  void column_sum(const Tensor& x, const Tensor& sums, bool accumulate) override {
    cuda::column_sum(x, sums, accumulate, scratch_, stream());
  }
  void sums_of_squares(std::span<const float> values, std::span<double> block_sums) override {
    assert(block_sums.size() == squares_blocks(values.size()));
    auto* sums = scratch_.get<double>(block_sums.size());
    cuda::sums_of_squares(values, sums, stream());
    copy({sums, block_sums.size(), DType::kF64, device_}, view_of(block_sums));
  }
  void add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out) override {
    cuda::add_f32(a, b, out, stream());
  }
  void adamw(const AdamW& adamw) override { cuda::adamw(adamw, stream()); }
  void convert(const BufferView& from, const BufferView& to) override { cuda::convert(from, to, stream()); }
  void fill_zero(const Tensor& x) override {
    cuda::check(cudaMemsetAsync(x.data(), 0, x.size_bytes(), stream()), "clearing");
  }

 private:
  static Device selected(int index) {
    cuda::use_device(index);
    return {DeviceKind::kCuda, static_cast<std::uint8_t>(index)};
  }
  static cudaStream_t stream() { return cuda::compute_stream().get(); }
  static void check_width(const AttentionShape& shape) {
    require(shape.head_dim <= cuda::kWidestHead, "self_attention: heads of {}; on a GPU they are at most {} wide",
            shape.head_dim, cuda::kWidestHead);
  }

  Device device_;
  ThreadPool pool_;
  cuda::GemmCache gemms_;
  cuda::Recorder recorder_;
  cuda::IdUpload upload_{recorder_};
  cuda::SequenceTables sequences_{recorder_};
  cuda::Scratch scratch_{recorder_};
  std::unique_ptr<cuda::Sdpa> sdpa_;  // null: there is no cuDNN, or not for this GPU
  std::string note_;
  bool refusal_noted_ = false;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(int index, int threads, bool tf32) {
  return std::make_unique<CudaBackend>(index, threads, tf32);
}

}  // namespace lockstep
