#include "launcher/bench/timed_backend.h"

#include <algorithm>
#include <utility>

#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

bool is_same(const Matrix& a, const Matrix& b) {
  return a.dtype == b.dtype && a.rows == b.rows && a.columns == b.columns && a.transposed == b.transposed;
}

bool is_same(const GemmCalls& a, const GemmCalls& b) {
  return is_same(a.gemm.a, b.gemm.a) && is_same(a.gemm.b, b.gemm.b) && is_same(a.gemm.d, b.gemm.d) &&
         a.gemm.accumulate == b.gemm.accumulate && a.gemm.epilogue == b.gemm.epilogue && a.has_bias == b.has_bias &&
         a.is_head == b.is_head && a.pass == b.pass;
}

// Adds the time until it is destroyed.
class Timing {
 public:
  explicit Timing(double& total_ms) : total_ms_(total_ms), begin_ms_(now_ms()) {}
  ~Timing() { total_ms_ += now_ms() - begin_ms_; }
  Timing(const Timing&) = delete;
  Timing& operator=(const Timing&) = delete;

 private:
  double& total_ms_;
  double begin_ms_;
};

}  // namespace

std::string_view name_of(StepPart part) {
  switch (part) {
    case StepPart::kGemm:
      return "gemm";
    case StepPart::kAttention:
      return "attention";
    case StepPart::kNorms:
      return "norms and elementwise";
    case StepPart::kHead:
      return "head and loss";
    case StepPart::kOptimizer:
      return "optimizer";
    case StepPart::kSums:
      return "gradient sums";
  }
  return "";
}

std::string_view name_of(Pass pass) {
  switch (pass) {
    case Pass::kForward:
      return "forward";
    case Pass::kInputGradient:
      return "input gradient";
    case Pass::kWeightGradient:
      return "weight gradient";
  }
  return "";
}

double GemmCalls::flop() const {
  return 2.0 * static_cast<double>(m()) * static_cast<double>(n()) * static_cast<double>(k());
}

TimedBackend::TimedBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

void TimedBackend::reset() {
  ms_ = {};
  gemms_.clear();
}

template <typename Call>
void TimedBackend::timed(StepPart part, const Call& call) {
  const Timing timing(ms_[static_cast<std::size_t>(part)]);
  call();
  if (is_waiting_) {
    backend_->synchronize();
  }
}

// The head multiplies, computes the loss and the gradients for some rows, and then for the next ones; the layers'
// products come in the order of the passes.
void TimedBackend::place(GemmCalls& call) {
  call.is_head = head_gradient_is_next_ || (head_ != nullptr && call.gemm.b.data == head_);
  if (call.gemm.a.transposed) {
    call.pass = Pass::kWeightGradient;
  } else {
    const bool is_backward = call.is_head ? loss_since_head_gradient_ : loss_since_embedding_;
    call.pass = is_backward ? Pass::kInputGradient : Pass::kForward;
  }
  head_gradient_is_next_ = call.is_head && call.pass == Pass::kInputGradient;
  if (call.is_head && call.pass == Pass::kWeightGradient) {
    loss_since_head_gradient_ = false;
  }
}

// On a CPU the activation is a pass of its own, and counts as one.
void TimedBackend::gemm(const Gemm& gemm) {
  if (gemm.epilogue != Epilogue::kNone && device().kind == DeviceKind::kCpu) {
    const Tensor d(gemm.d.data, gemm.before.shape(), gemm.d.dtype);
    Gemm product = gemm;
    product.epilogue = Epilogue::kNone;
    product.before = {};
    if (gemm.epilogue == Epilogue::kGelu) {
      product.d.data = gemm.before.data();
      this->gemm(product);
      gelu_forward(gemm.before, d);
    } else {
      this->gemm(product);
      gelu_backward(gemm.before, d, d);
    }
    return;
  }
  GemmCalls call{.gemm = gemm, .has_bias = gemm.bias != nullptr};
  call.gemm.before = {};  // what is told of the call outlives the step's memory
  place(call);
  {
    const Timing timing(call.ms);
    timed(call.is_head ? StepPart::kHead : StepPart::kGemm, [&] { backend_->gemm(gemm); });
  }
  const auto known = std::find_if(gemms_.begin(), gemms_.end(), [&](const GemmCalls& g) { return is_same(g, call); });
  GemmCalls& entry = known != gemms_.end() ? *known : gemms_.emplace_back(call);
  entry.ms += known != gemms_.end() ? call.ms : 0;
  ++entry.calls;
}

void TimedBackend::gemm_each(std::span<const Gemm> products) {
  timed(StepPart::kGemm, [&] { backend_->gemm_each(products); });
}
void TimedBackend::norm_forward(const NormForward& norm) {
  timed(StepPart::kNorms, [&] { backend_->norm_forward(norm); });
}
void TimedBackend::norm_backward(const NormBackward& norm) {
  timed(StepPart::kNorms, [&] { backend_->norm_backward(norm); });
}
void TimedBackend::attention_forward(const AttentionForward& attention) {
  timed(StepPart::kAttention, [&] { backend_->attention_forward(attention); });
}
void TimedBackend::attention_backward(const AttentionBackward& attention) {
  timed(StepPart::kAttention, [&] { backend_->attention_backward(attention); });
}
void TimedBackend::rope(const Rope& rope) {
  timed(StepPart::kAttention, [&] { backend_->rope(rope); });
}
void TimedBackend::dropout(const Dropout& dropout, const Tensor& x, const Tensor& y) {
  timed(StepPart::kNorms, [&] { backend_->dropout(dropout, x, y); });
}
void TimedBackend::gelu_forward(const Tensor& x, const Tensor& y) {
  timed(StepPart::kNorms, [&] { backend_->gelu_forward(x, y); });
}
void TimedBackend::gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx) {
  timed(StepPart::kNorms, [&] { backend_->gelu_backward(x, dy, dx); });
}
void TimedBackend::swiglu_forward(const Tensor& gate_up, const Tensor& y) {
  timed(StepPart::kNorms, [&] { backend_->swiglu_forward(gate_up, y); });
}
void TimedBackend::swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& dgate_up) {
  timed(StepPart::kNorms, [&] { backend_->swiglu_backward(gate_up, dy, dgate_up); });
}
void TimedBackend::add(const Tensor& a, const Tensor& b, const Tensor& out) {
  timed(StepPart::kNorms, [&] { backend_->add(a, b, out); });
}
void TimedBackend::row_norms(const Matrix& x, const Tensor& norms) {
  timed(StepPart::kNorms, [&] { backend_->row_norms(x, norms); });
}

void TimedBackend::scale_columns(const ColumnScale& scale) {
  timed(StepPart::kNorms, [&] { backend_->scale_columns(scale); });
}

void TimedBackend::scale_columns_gradient(const ColumnScaleGradient& gradient) {
  timed(StepPart::kNorms, [&] { backend_->scale_columns_gradient(gradient); });
}

void TimedBackend::scale(const Tensor& x, float factor, const Tensor& y) {
  timed(StepPart::kNorms, [&] { backend_->scale(x, factor, y); });
}
void TimedBackend::add_noise(const Noise& noise, const Tensor& x) {
  timed(StepPart::kNorms, [&] { backend_->add_noise(noise, x); });
}
void TimedBackend::unpack(const PackedWeight& weight, const Tensor& out) {
  timed(StepPart::kNorms, [&] { backend_->unpack(weight, out); });
}
void TimedBackend::embedding_forward(const Embedding& embedding, const Tensor& tokens_table,
                                     const Tensor& positions_table, const Tensor& x) {
  loss_since_embedding_ = false;
  timed(StepPart::kNorms, [&] { backend_->embedding_forward(embedding, tokens_table, positions_table, x); });
}
void TimedBackend::embedding_backward(const Embedding& embedding, const Tensor& dx, const Tensor& dtokens_table,
                                      const Tensor& dpositions_table) {
  timed(StepPart::kNorms, [&] { backend_->embedding_backward(embedding, dx, dtokens_table, dpositions_table); });
}
void TimedBackend::cross_entropy(const CrossEntropy& cross_entropy) {
  loss_since_embedding_ = true;
  loss_since_head_gradient_ = true;
  timed(StepPart::kHead, [&] { backend_->cross_entropy(cross_entropy); });
}
void TimedBackend::column_sum(const Tensor& x, const Tensor& sums, bool accumulate) {
  timed(StepPart::kNorms, [&] { backend_->column_sum(x, sums, accumulate); });
}
void TimedBackend::sums_of_squares(std::span<const float> values, std::span<double> block_sums) {
  timed(StepPart::kOptimizer, [&] { backend_->sums_of_squares(values, block_sums); });
}
void TimedBackend::add_f32(std::span<const float> a, std::span<const float> b, std::span<float> out) {
  timed(StepPart::kSums, [&] { backend_->add_f32(a, b, out); });
}
void TimedBackend::adamw(const AdamW& adamw) {
  timed(StepPart::kOptimizer, [&] { backend_->adamw(adamw); });
}
void TimedBackend::convert(const BufferView& from, const BufferView& to) {
  timed(StepPart::kOptimizer, [&] { backend_->convert(from, to); });
}
void TimedBackend::fill_zero(const Tensor& x) {
  timed(StepPart::kNorms, [&] { backend_->fill_zero(x); });
}

}  // namespace lockstep
