#include "ops/cuda/sdpa.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <map>
#include <span>
#include <utility>

#include "base/cuda/runtime.h"
#include "base/error.h"
#include "ops/cuda/fused_graph.h"

namespace lockstep::cuda {
namespace {

// Earlier ones have faults in attention that NVIDIA lists (9.10.0, 9.10.1), or want a finite number in place of -inf.
constexpr std::size_t kOldestVersion = 91002;
// Up to this one the gradient is wrong for lengths that are no multiple of 128, unless padding is masked.
constexpr std::size_t kNewestVersionWithPaddingFault = 91500;

// The major compute capability up to which the graph of the gradient below is known to bring a reproducible kernel.
constexpr int kNewestReproducibleGeneration = 9;

// A prompt to generate from is of any length, and making a plan for each takes longer than our kernel does for it.
constexpr std::int64_t kShortPrompt = 128;

// The scores of so many bytes are worked on at once by the gradient.
constexpr std::int64_t kScoresLimitBytes = std::int64_t{1} << 30;

// The tensors and numbers that a call supplies.
enum Uid : std::int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLogSumExp,
  kScale,
  kMinusInfinity,
  kOne,
  kDout,
  kProducts,
  kDq,
  kDk,
  kDv,
};

cudnnDataType_t type_of(DType dtype) { return dtype == DType::kBF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF; }

// The layouts of one attention: T = query_length = key_length.
struct Layouts {
  AttentionShape shape;

  [[nodiscard]] Layout queries(const RowsView& view) const { return rows(view, shape.heads); }
  [[nodiscard]] Layout keys(const RowsView& view) const { return rows(view, shape.kv_heads); }
  // [B, H, T, D] inside of the kernel
  [[nodiscard]] Layout vectors() const { return dense(shape.batch, shape.heads, shape.query_length, shape.head_dim); }
  // [B, H, T, T]
  [[nodiscard]] Layout scores() const { return dense(shape.batch, shape.heads, shape.query_length, shape.key_length); }
  // [B, H, T, 1]
  [[nodiscard]] Layout per_row() const { return dense(shape.batch, shape.heads, shape.query_length, 1); }

 private:
  [[nodiscard]] Layout rows(const RowsView& view, std::int64_t heads) const {
    return {{shape.batch, heads, shape.query_length, shape.head_dim},
            {view.batch_stride, shape.head_dim, view.row_stride, 1}};
  }
};

// Scores of keys that lie after the query become -inf.
Graph::Value mask_future(Graph& graph, const Layout& layout, Graph::Value scores) {
  const Graph::Value query = graph.index("index of the query", 2, scores, graph.inside(layout, CUDNN_DATA_INT32));
  const Graph::Value key = graph.index("index of the key", 3, scores, graph.inside(layout, CUDNN_DATA_INT32));
  const Graph::Value is_seen = graph.is_at_least("query >= key", query, key, graph.inside(layout, CUDNN_DATA_BOOLEAN));
  return graph.select("mask", is_seen, scores, graph.scalar(kMinusInfinity), graph.inside(layout));
}

// P = softmax(mask(scale Q K^T)), out = P V, row by row with the row's maximum m and sum l:
// P = exp(S - m) / l, log_sum_exp = m + log(l).
Graph forward_graph(const Cudnn& cudnn, const AttentionForward& args) {
  const cudnnDataType_t dtype = type_of(args.dtype);
  const Layouts layouts{args.shape};
  const Layout scores = layouts.scores();
  const Layout per_row = layouts.per_row();
  Graph graph(cudnn, "attention forward");

  const Graph::Value q = graph.operand(kQ, dtype, layouts.queries(args.q));
  const Graph::Value k_transposed = graph.operand(kK, dtype, transposed(layouts.keys(args.k)));
  const Graph::Value product = graph.matmul("q k^T", q, k_transposed, graph.inside(scores));
  const Graph::Value scaled =
      graph.binary("scale", CUDNN_POINTWISE_MUL, product, graph.scalar(kScale), graph.inside(scores));
  const Graph::Value masked = mask_future(graph, scores, scaled);

  const Graph::Value maximum = graph.reduce("maximum", CUDNN_REDUCE_TENSOR_MAX, masked, graph.inside(per_row));
  const Graph::Value shifted =
      graph.binary("minus maximum", CUDNN_POINTWISE_SUB, masked, maximum, graph.inside(scores));
  const Graph::Value exponential = graph.unary("exp", CUDNN_POINTWISE_EXP, shifted, graph.inside(scores));
  const Graph::Value sum = graph.reduce("sum", CUDNN_REDUCE_TENSOR_ADD, exponential, graph.inside(per_row));
  // cuDNN looks for the log-sum-exp even where nobody keeps it.
  const Graph::Value log = graph.unary("log", CUDNN_POINTWISE_LOG, sum, graph.inside(per_row));
  graph.binary(
      "log-sum-exp", CUDNN_POINTWISE_ADD, maximum, log,
      args.log_sum_exp.is_defined() ? graph.operand(kLogSumExp, CUDNN_DATA_FLOAT, per_row) : graph.inside(per_row));
  const Graph::Value probabilities =
      graph.binary("divide by sum", CUDNN_POINTWISE_DIV, exponential, sum, graph.inside(scores, dtype));

  const Graph::Value v = graph.operand(kV, dtype, layouts.keys(args.v));
  graph.matmul("p v", probabilities, v, graph.operand(kOut, dtype, layouts.queries(args.out)));
  return graph;
}

// The gradient of a query head's keys or values, a^T b; where heads share them, the heads' sum.
void add_key_gradient(Graph& graph, const Layouts& layouts, cudnnDataType_t dtype, std::string_view step,
                      Graph::Value a_transposed, Graph::Value b, Graph::Value gradient) {
  if (layouts.shape.heads == layouts.shape.kv_heads) {
    graph.matmul(step, a_transposed, b, gradient);
    return;
  }
  const Graph::Value per_head = graph.matmul(step, a_transposed, b, graph.inside(layouts.vectors(), dtype));
  graph.reduce(fmt::format("{}, sum of heads", step), CUDNN_REDUCE_TENSOR_ADD, per_head, gradient);
}

// P  = exp(mask(scale Q K^T) - log_sum_exp)                     dV = P^T dOut
// dS = scale P (dOut V^T - rowsum(dOut Out))                    dK = dS^T Q,  dQ = dS K
// That dQ is the result of one product, not of sums in f32 that are converted later, is what asks for the reproducible
// kernel.
Graph backward_graph(const Cudnn& cudnn, const AttentionBackward& args) {
  const cudnnDataType_t dtype = type_of(args.dtype);
  const Layouts layouts{args.shape};
  const Layout scores = layouts.scores();
  const Layout per_row = layouts.per_row();
  Graph graph(cudnn, "attention backward");

  const Graph::Value q = graph.operand(kQ, dtype, layouts.queries(args.q));
  const Graph::Value k_transposed = graph.operand(kK, dtype, transposed(layouts.keys(args.k)));
  const Graph::Value v_transposed = graph.operand(kV, dtype, transposed(layouts.keys(args.v)));
  const Graph::Value out = graph.operand(kOut, dtype, layouts.queries(args.out));
  const Graph::Value dout = graph.operand(kDout, dtype, layouts.queries(args.dout));
  const Graph::Value scale = graph.scalar(kScale);

  // The factor 1 stands where a dropout's scale would: cuDNN looks for it.
  const Graph::Value elementwise =
      graph.binary("dout * out", CUDNN_POINTWISE_MUL, dout, out, graph.inside(layouts.vectors()));
  const Graph::Value row_sum =
      graph.reduce("rowsum(dout * out)", CUDNN_REDUCE_TENSOR_ADD, elementwise, graph.inside(per_row));
  const Graph::Value products = graph.binary("times 1", CUDNN_POINTWISE_MUL, row_sum, graph.scalar(kOne),
                                             graph.operand(kProducts, CUDNN_DATA_FLOAT, per_row));

  const Graph::Value score = graph.matmul("q k^T", q, k_transposed, graph.inside(scores));
  const Graph::Value scaled = graph.binary("scale", CUDNN_POINTWISE_MUL, score, scale, graph.inside(scores));
  const Graph::Value shifted = graph.binary("minus log-sum-exp", CUDNN_POINTWISE_SUB, scaled,
                                            graph.operand(kLogSumExp, CUDNN_DATA_FLOAT, per_row), graph.inside(scores));
  const Graph::Value masked = mask_future(graph, scores, shifted);
  const Graph::Value p = graph.unary("exp", CUDNN_POINTWISE_EXP, masked, graph.inside(scores));
  const Graph::Value p_transposed = graph.reshape("p^T", p, graph.inside(transposed(scores), dtype));
  add_key_gradient(graph, layouts, dtype, "dv = p^T dout", p_transposed, dout,
                   graph.operand(kDv, dtype, layouts.keys(args.dv)));

  const Graph::Value dp = graph.matmul("dout v^T", dout, v_transposed, graph.inside(scores));
  const Graph::Value centred = graph.binary("minus rowsum", CUDNN_POINTWISE_SUB, dp, products, graph.inside(scores));
  const Graph::Value times_p = graph.binary("times p", CUDNN_POINTWISE_MUL, centred, p, graph.inside(scores));
  const Graph::Value ds = graph.binary("scale ds", CUDNN_POINTWISE_MUL, times_p, scale, graph.inside(scores));
  const Graph::Value ds_transposed = graph.reshape("ds^T", ds, graph.inside(transposed(scores), dtype));
  add_key_gradient(graph, layouts, dtype, "dk = ds^T q", ds_transposed, q,
                   graph.operand(kDk, dtype, layouts.keys(args.dk)));

  const Graph::Value k = graph.reshape("k", k_transposed, graph.inside(layouts.keys(args.k)));
  graph.matmul("dq = ds k", ds, k, graph.operand(kDq, dtype, layouts.queries(args.dq)));
  return graph;
}

enum class Kind : std::uint8_t { kForward, kForwardWithSums, kBackward };

// Everything that decides about a plan but the GPU and cuDNN. The scale is given with each call.
using Key = std::array<std::int64_t, 23>;

Key key_of(DType dtype, const AttentionShape& shape, Kind kind, std::initializer_list<RowsView> views) {
  Key key{static_cast<std::int64_t>(kind),
          static_cast<std::int64_t>(dtype),
          shape.batch,
          shape.query_length,
          shape.heads,
          shape.kv_heads,
          shape.head_dim};
  std::size_t next = 7;
  for (const RowsView& view : views) {
    key[next++] = view.row_stride;
    key[next++] = view.batch_stride;
  }
  return key;
}

// What is plainly not for cuDNN, before anything is built.
bool is_served(DType dtype, const Dropout& dropout, const AttentionShape& shape) {
  return dtype != DType::kF32 && !(dropout.probability > 0) && shape.query_length == shape.key_length &&
         shape.query_length > 1 && shape.head_dim % 8 == 0 && shape.heads % shape.kv_heads == 0;
}

// Where head `head` of batch entry `batch` starts.
const void* start_of(const RowsView& view, std::int64_t batch, std::int64_t head, std::int64_t head_dim) {
  constexpr std::int64_t kElementBytes = 2;
  return static_cast<const std::byte*>(view.data) + (batch * view.batch_stride + head * head_dim) * kElementBytes;
}

// The largest divisor of `count`, at least 1, that is no larger than `limit`.
std::int64_t largest_divisor(std::int64_t count, std::int64_t limit) {
  std::int64_t divisor = std::clamp<std::int64_t>(limit, 1, count);
  while (count % divisor != 0) {
    --divisor;
  }
  return divisor;
}

// The reproducible gradient keeps dS[B, H, T, T] in memory. Batch entries do not need one another, nor do the groups of
// heads that share keys: so many of them are done at a time that dS stays within kScoresLimitBytes.
AttentionShape slice_of(const AttentionShape& shape) {
  const std::int64_t heads_per_group = shape.heads / shape.kv_heads;
  const std::int64_t group_bytes = heads_per_group * shape.query_length * shape.key_length * std::int64_t{2};
  const std::int64_t groups = kScoresLimitBytes / group_bytes;
  AttentionShape slice = shape;
  slice.batch = largest_divisor(shape.batch, groups / shape.kv_heads);
  if (slice.batch == 1) {
    slice.kv_heads = largest_divisor(shape.kv_heads, groups);
    slice.heads = slice.kv_heads * heads_per_group;
  }
  return slice;
}

struct Argument {
  Uid uid;
  const void* data;
};

constexpr std::size_t kMaxArguments = 13;
constexpr float kMinusInfinityValue = -std::numeric_limits<float>::infinity();
constexpr float kOneValue = 1;

constexpr std::size_t round_up(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

class Sdpa::Implementation {
 public:
  explicit Implementation(Recorder& recorder) : recorder_(recorder) {
    if (cudnn_.get_version() < kOldestVersion) {
      fail(ErrorCode::kUnsupported, "cudnn: version {} is too old, {} is needed", cudnn_.get_version(), kOldestVersion);
    }
    cudnn_.check(cudnn_.set_stream(handle_.get(), compute_stream().get()), ErrorCode::kUnsupported, "handle",
                 "setting the stream");
  }

  bool forward(const AttentionForward& args) {
    if (!is_served(args.dtype, args.dropout, args.shape)) {
      return false;
    }
    const bool has_log_sum_exp = args.log_sum_exp.is_defined();
    if (!has_log_sum_exp && args.shape.query_length < kShortPrompt) {
      return false;
    }
    const Key key = key_of(args.dtype, args.shape, has_log_sum_exp ? Kind::kForwardWithSums : Kind::kForward,
                           {args.q, args.k, args.v, args.out});
    const Plan* plan = find_plan(key, 0, [&] { return forward_graph(cudnn_, args); });
    if (plan == nullptr) {
      return false;
    }
    const std::array<Argument, 7> arguments{{{kQ, args.q.data},
                                             {kK, args.k.data},
                                             {kV, args.v.data},
                                             {kOut, args.out.data},
                                             {kScale, &args.shape.scale},
                                             {kMinusInfinity, &kMinusInfinityValue},
                                             {kLogSumExp, args.log_sum_exp.data()}}};
    execute(*plan, std::span<const Argument>(arguments).first(has_log_sum_exp ? 7 : 6), workspace_.data());
    return true;
  }

  bool backward(const AttentionBackward& args) {
    if (!is_served(args.dtype, args.dropout, args.shape) || generation_ > kNewestReproducibleGeneration ||
        (cudnn_.get_version() <= kNewestVersionWithPaddingFault && args.shape.key_length % 128 != 0)) {
      return false;
    }
    AttentionBackward slice = args;
    slice.shape = slice_of(args.shape);
    const Key key = key_of(args.dtype, slice.shape, Kind::kBackward,
                           {args.q, args.k, args.v, args.out, args.dout, args.dq, args.dk, args.dv});
    const Plan* plan = find_plan(key, products_bytes(slice.shape), [&] { return backward_graph(cudnn_, slice); });
    if (plan == nullptr) {
      return false;
    }
    for (std::int64_t batch = 0; batch < args.shape.batch; batch += slice.shape.batch) {
      for (std::int64_t head = 0; head < args.shape.kv_heads; head += slice.shape.kv_heads) {
        backward_from(*plan, args, slice.shape, {.batch = batch, .kv_head = head});
      }
    }
    return true;
  }

  [[nodiscard]] const std::string& last_refusal() const { return last_refusal_; }

 private:
  struct Start {
    std::int64_t batch = 0;
    std::int64_t kv_head = 0;
  };

  // rowsum(dout * out) is an intermediate that cuDNN wants memory for from its caller; it lies before the workspace.
  static std::size_t products_bytes(const AttentionShape& slice) {
    return round_up(static_cast<std::size_t>(slice.batch * slice.heads * slice.query_length) * sizeof(float));
  }

  void backward_from(const Plan& plan, const AttentionBackward& args, const AttentionShape& slice, Start start) const {
    const std::int64_t kv_head = start.kv_head;
    const std::int64_t head = kv_head * (args.shape.heads / args.shape.kv_heads);
    const auto queries = [&](const RowsView& view) { return start_of(view, start.batch, head, slice.head_dim); };
    const auto keys = [&](const RowsView& view) { return start_of(view, start.batch, kv_head, slice.head_dim); };
    const float* log_sum_exp =
        args.log_sum_exp.data<float>() + (start.batch * args.shape.heads + head) * args.shape.query_length;
    std::byte* products = workspace_.data();
    const std::array<Argument, kMaxArguments> arguments{{{kQ, queries(args.q)},
                                                         {kK, keys(args.k)},
                                                         {kV, keys(args.v)},
                                                         {kOut, queries(args.out)},
                                                         {kDout, queries(args.dout)},
                                                         {kLogSumExp, log_sum_exp},
                                                         {kScale, &args.shape.scale},
                                                         {kMinusInfinity, &kMinusInfinityValue},
                                                         {kOne, &kOneValue},
                                                         {kProducts, products},
                                                         {kDq, queries(args.dq)},
                                                         {kDk, keys(args.dk)},
                                                         {kDv, keys(args.dv)}}};
    execute(plan, arguments, products + products_bytes(slice));
  }

  // The plan of `key`, made of what `draw` returns when it is asked for first; null when there is none. The workspace
  // is as large as `own_bytes` and the plan's together.
  template <typename Draw>
  const Plan* find_plan(const Key& key, std::size_t own_bytes, const Draw& draw) {
    const auto known = plans_.find(key);
    if (known != plans_.end()) {
      return known->second.get();
    }
    std::unique_ptr<Plan> plan;
    try {
      plan = std::make_unique<Plan>(choose_plan(cudnn_, handle_.get(), draw()));
    } catch (const Error& error) {
      last_refusal_ = error.what();
    }
    if (plan != nullptr) {
      reserve(own_bytes + static_cast<std::size_t>(plan->workspace_bytes));
    }
    return plans_.emplace(key, std::move(plan)).first->second.get();
  }

  // The old memory goes first, once the GPU is done with it: the two need not fit side by side.
  void reserve(std::size_t size_bytes) {
    if (size_bytes > workspace_.size_bytes()) {
      recorder_.let_go(std::move(workspace_));
      workspace_ = allocate_device(size_bytes);
    }
  }

  // A plan that was made is expected to run: a failure here is the GPU's.
  void execute(const Plan& plan, std::span<const Argument> arguments, void* workspace) const {
    std::array<std::int64_t, kMaxArguments> uids{};
    std::array<void*, kMaxArguments> pointers{};
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      uids[i] = arguments[i].uid;
      pointers[i] = const_cast<void*>(arguments[i].data);  // cuDNN's interface makes no difference
    }
    Descriptor pack(cudnn_, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "attention: arguments");
    pack.set_all(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64,
                 std::span<const std::int64_t>(uids).first(arguments.size()));
    pack.set_all(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                 std::span<void* const>(pointers).first(arguments.size()));
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
    pack.finalize();
    cudnn_.check(cudnn_.execute(handle_.get(), plan.plan.get(), pack.get()), ErrorCode::kDevice, "attention",
                 "executing");
  }

  Cudnn cudnn_;
  Handle handle_{cudnn_};
  int generation_ = compute_capability() / 10;  // the major number
  std::map<Key, std::unique_ptr<Plan>> plans_;  // null where cuDNN refused
  Recorder& recorder_;
  Buffer workspace_;
  std::string last_refusal_;
};

Sdpa::Sdpa(Recorder& recorder) : implementation_(std::make_unique<Implementation>(recorder)) {}
Sdpa::~Sdpa() = default;
bool Sdpa::forward(const AttentionForward& args) { return implementation_->forward(args); }
bool Sdpa::backward(const AttentionBackward& args) { return implementation_->backward(args); }
const std::string& Sdpa::last_refusal() const { return implementation_->last_refusal(); }

}  // namespace lockstep::cuda
