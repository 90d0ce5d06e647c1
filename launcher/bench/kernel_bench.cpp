#include "launcher/bench/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>

#include "ops/backend.h"
#include "trainer/gemm_rate.h"
#include "trainer/model/architecture.h"
#include "trainer/model/parameters.h"
#include "trainer/stopwatch.h"

namespace lockstep {
namespace {

// One kernel on memory of its own.
struct Kernel {
  std::string name;
  double work = 0;  // bytes or operations
  std::function<void()> run;
};

// The best of a few repetitions that take some tens of milliseconds together. On a GPU several calls are timed as one,
// so that starting them does not show.
double best_ms(Backend& backend, const std::function<void()>& run) {
  constexpr double kPatienceMs = 40;
  const int calls = backend.device().kind == DeviceKind::kCuda ? 20 : 1;
  double best = 1e30;
  run();
  backend.synchronize();
  const double begin_ms = now_ms();
  for (int i = 0; i < 3 || (i < 100 && now_ms() - begin_ms < kPatienceMs); ++i) {
    const double before_ms = now_ms();
    for (int call = 0; call < calls; ++call) {
      run();
    }
    backend.synchronize();
    best = std::min(best, (now_ms() - before_ms) / calls);
  }
  return best;
}

class Memory {
 public:
  explicit Memory(Backend& backend) : backend_(backend) {}

  [[nodiscard]] Tensor tensor(const Shape& shape, DType dtype) {
    buffers_.push_back(
        random_memory(backend_, std::max<std::size_t>(static_cast<std::size_t>(shape.count()), 1), dtype));
    return {buffers_.back().data(), shape, dtype, backend_.device()};
  }

 private:
  Backend& backend_;
  std::vector<Buffer> buffers_;
};

struct Sizes {
  std::int64_t rows, width, hidden, vocab, parameters;
  DType working;

  explicit Sizes(const Config& config)
      : rows(std::int64_t{config.train.micro_batch_size} * config.data.sequence),
        width(config.model.width),
        hidden(config.model.hidden),
        vocab(config.model.vocab),
        parameters(static_cast<std::int64_t>(make_parameters(architecture_of(config.model)).layout.total())),
        working(dtype_of(config.train.precision)) {}
};

std::vector<Kernel> memory_kernels(const Sizes& sizes, Backend& backend, Memory& memory) {
  const Shape rows{sizes.rows, sizes.width};
  const Shape inner{sizes.rows, sizes.hidden};
  const DType working = sizes.working;
  const auto bytes = [](std::initializer_list<Tensor> tensors) {
    double sum = 0;
    for (const Tensor& tensor : tensors) {
      sum += static_cast<double>(tensor.size_bytes());
    }
    return sum;
  };
  std::vector<Kernel> kernels;

  NormForward norm;
  norm.x = memory.tensor(rows, working);
  norm.branch = memory.tensor(rows, working);
  norm.gain = memory.tensor({sizes.width}, working);
  norm.bias = memory.tensor({sizes.width}, working);
  norm.sum = memory.tensor(rows, working);
  norm.y = memory.tensor(rows, working);
  norm.mean = memory.tensor({sizes.rows}, DType::kF32);
  norm.rstd = memory.tensor({sizes.rows}, DType::kF32);
  kernels.push_back({"residual and norm", bytes({norm.x, norm.branch, norm.sum, norm.y}),
                     [&backend, norm] { backend.norm_forward(norm); }});
  NormBackward back;
  back.dy = memory.tensor(rows, working);
  back.dsum = norm.branch;
  back.sum = norm.sum;
  back.gain = norm.gain;
  back.mean = norm.mean;
  back.rstd = norm.rstd;
  back.dx = norm.x;
  back.dgain = memory.tensor({sizes.width}, DType::kF32);
  back.dbias = memory.tensor({sizes.width}, DType::kF32);
  kernels.push_back({"norm, gradient", bytes({back.dy, back.dsum, back.sum, back.dx}),
                     [&backend, back] { backend.norm_backward(back); }});

  const Tensor before = memory.tensor(inner, working);
  const Tensor hidden = memory.tensor(inner, working);
  kernels.push_back({"gelu", bytes({before, hidden}), [=, &backend] { backend.gelu_forward(before, hidden); }});
  kernels.push_back({"gelu, gradient", bytes({before, hidden, hidden}),
                     [=, &backend] { backend.gelu_backward(before, hidden, hidden); }});
  const Tensor sums = memory.tensor({sizes.hidden}, DType::kF32);
  kernels.push_back({"bias gradient", bytes({hidden}), [=, &backend] { backend.column_sum(hidden, sums, true); }});

  const Backend::LogitsShape shape = backend.logits_shape(sizes.vocab, working);
  const std::int64_t chunk = std::min(shape.rows, sizes.rows);
  const Tensor logits = memory.tensor({chunk, shape.stride}, shape.dtype);
  const Tensor dlogits = working == shape.dtype ? logits : memory.tensor({chunk, shape.stride}, working);
  const Tensor losses = memory.tensor({chunk}, DType::kF32);
  const auto targets = std::make_shared<std::vector<std::int32_t>>(static_cast<std::size_t>(chunk), 1);
  kernels.push_back({"cross-entropy", bytes({logits, dlogits}), [=, &backend, vocab = sizes.vocab] {
                       backend.cross_entropy({logits, vocab, *targets, 1.0F, dlogits, losses});
                     }});

  const Shape flat{sizes.parameters};
  AdamW adamw;
  adamw.master = memory.tensor(flat, DType::kF32).as<float>();
  adamw.exp_avg = memory.tensor(flat, DType::kF32).as<float>();
  adamw.exp_avg_sq = memory.tensor(flat, DType::kF32).as<float>();
  const Tensor gradient = memory.tensor(flat, DType::kF32);
  adamw.gradient = gradient.as<float>();
  kernels.push_back(
      {"adamw", 7.0 * static_cast<double>(gradient.size_bytes()), [=, &backend] { backend.adamw(adamw); }});
  const auto block_sums = std::make_shared<std::vector<double>>(squares_blocks(gradient.as<float>().size()));
  kernels.push_back({"gradient norm", bytes({gradient}),
                     [=, &backend] { backend.sums_of_squares(gradient.as<float>(), *block_sums); }});
  return kernels;
}

// A copy of a piece that no cache holds: bytes read and written.
Kernel copy_kernel(Backend& backend, Memory& memory) {
  const Tensor from = memory.tensor({std::int64_t{64} << 20}, DType::kF32);
  const Tensor to = memory.tensor(from.shape(), DType::kF32);
  return {"copy", 2.0 * static_cast<double>(from.size_bytes()),
          [=, &backend] { backend.convert(from.buffer(), to.buffer()); }};
}

}  // namespace

MemoryBenchResult bench_memory(const BenchModel& model, int rounds, Communicator& communicator) {
  const auto backend = make_backend(model.device, model.config.train.threads);
  Memory memory(*backend);
  const Kernel copy = copy_kernel(*backend, memory);
  const std::vector<Kernel> kernels = memory_kernels(Sizes(model.config), *backend, memory);
  std::vector<double> ceilings;
  std::vector<std::vector<double>> rates(kernels.size());
  std::vector<std::vector<double>> ratios(kernels.size());
  for (int round = 0; round < rounds; ++round) {
    communicator.barrier();
    ceilings.push_back(copy.work / (best_ms(*backend, copy.run) * 1e-3));
    for (std::size_t k = 0; k < kernels.size(); ++k) {
      rates[k].push_back(kernels[k].work / (best_ms(*backend, kernels[k].run) * 1e-3));
      ratios[k].push_back(rates[k].back() / ceilings.back());
    }
  }
  MemoryBenchResult result;
  result.ceiling_bytes_per_s = median(ceilings);
  for (std::size_t k = 0; k < kernels.size(); ++k) {
    result.rows.push_back({kernels[k].name, kernels[k].work, median(rates[k]), median(ratios[k])});
  }
  return result;
}

AttentionBenchResult bench_attention(const BenchModel& model, int rounds, Communicator& communicator) {
  const Config& config = model.config;
  const auto backend = make_backend(model.device, config.train.threads);
  Memory memory(*backend);
  const Sizes sizes(config);
  AttentionForward forward;
  AttentionShape& shape = forward.shape;
  shape.batch = config.train.micro_batch_size;
  shape.query_length = shape.key_length = shape.key_capacity = config.data.sequence;
  shape.heads = config.model.heads;
  shape.kv_heads = config.model.kv_heads;
  shape.head_dim = config.model.head_dim;
  shape.scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  forward.dtype = sizes.working;
  const std::int64_t packed = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
  const auto part = [&](const Tensor& tensor, std::int64_t first_head) {
    return RowsView{static_cast<std::byte*>(tensor.data()) +
                        static_cast<std::size_t>(first_head * shape.head_dim) * size_of(sizes.working),
                    tensor.dim(-1), tensor.dim(-1) * shape.query_length};
  };
  const Tensor qkv = memory.tensor({sizes.rows, packed}, sizes.working);
  const Tensor out = memory.tensor({sizes.rows, shape.heads * shape.head_dim}, sizes.working);
  forward.q = part(qkv, 0);
  forward.k = part(qkv, shape.heads);
  forward.v = part(qkv, shape.heads + shape.kv_heads);
  forward.out = part(out, 0);
  forward.log_sum_exp = memory.tensor({shape.batch, shape.heads, shape.query_length}, DType::kF32);
  const Tensor dout = memory.tensor(out.shape(), sizes.working);
  const Tensor dqkv = memory.tensor(qkv.shape(), sizes.working);
  AttentionBackward backward;
  backward.shape = shape;
  backward.dtype = forward.dtype;
  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.out = forward.out;
  backward.dout = part(dout, 0);
  backward.log_sum_exp = forward.log_sum_exp;
  backward.dq = part(dqkv, 0);
  backward.dk = part(dqkv, shape.heads);
  backward.dv = part(dqkv, shape.heads + shape.kv_heads);

  // Two products of T x T x head_dim a head, half of them behind the mask; the gradient has five.
  const auto length = static_cast<double>(shape.query_length);
  const double product =
      2.0 * static_cast<double>(shape.batch * shape.heads * shape.head_dim) * length * (length + 1) / 2;
  const std::vector<Kernel> kernels = {{"forward", 2 * product, [&] { backend->attention_forward(forward); }},
                                       {"gradient", 5 * product, [&] { backend->attention_backward(backward); }}};
  std::vector<double> ceilings;
  std::vector<std::vector<double>> times(kernels.size());
  std::vector<std::vector<double>> ratios(kernels.size());
  for (int round = 0; round < rounds; ++round) {
    communicator.barrier();
    ceilings.push_back(measure_gemm_rate(*backend, sizes.working));
    for (std::size_t k = 0; k < kernels.size(); ++k) {
      times[k].push_back(best_ms(*backend, kernels[k].run));
      ratios[k].push_back(kernels[k].work / (times[k].back() * 1e-3) / ceilings.back());
    }
  }
  AttentionBenchResult result;
  result.ceiling_flop_per_s = median(ceilings);
  for (std::size_t k = 0; k < kernels.size(); ++k) {
    const double ms = median(times[k]);
    if (const std::string note = backend->take_note(); !note.empty()) {
      result.note = note;
    }
    result.rows.push_back({kernels[k].name, kernels[k].work, ms, kernels[k].work / (ms * 1e-3), median(ratios[k])});
  }
  return result;
}

}  // namespace lockstep
