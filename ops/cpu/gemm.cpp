#include "ops/cpu/gemm.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "ops/cpu/matmul_primitive.h"
#include "ops/cpu/wide_gemm.h"

namespace lockstep::cpu {
namespace {

using dnnl::memory;

// Chunks are powers of two in number, which cores are too. Their number grows with the root of the work, so that small
// products still occupy a few threads and large ones keep large chunks, and none has fewer rows or columns than
// kMinChunk: it would read the whole other operand for too little work.
constexpr double kUnitFlop = 1.5e7;
constexpr std::int64_t kMaxChunks = 32;
constexpr std::int64_t kMinChunk = 128;
constexpr std::int64_t kChunkGranule = 32;  // rows or columns: a multiple of every register tile

std::int64_t chunks_of(std::int64_t m, std::int64_t n, std::int64_t k) {
  const double flop = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const double wanted = std::sqrt(flop / kUnitFlop);
  const std::int64_t most = std::min(kMaxChunks, std::max(m, n) / kMinChunk);
  std::int64_t chunks = 1;
  while (2 * chunks <= most && 2 * static_cast<double>(chunks) <= wanted) {
    chunks *= 2;
  }
  return chunks;
}

// What a primitive depends on; data pointers are given at execution.
struct Key {
  std::int64_t m, n, k, stride_a, stride_b, stride_d;
  DType in, out;
  bool transposed_a, transposed_b, bias, accumulate;
  friend bool operator==(const Key&, const Key&) = default;
};

struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = 0;
    for (const std::int64_t value : {key.m, key.n, key.k, key.stride_a, key.stride_b, key.stride_d}) {
      hash = mix64(hash ^ static_cast<std::uint64_t>(value));
    }
    const int flags = static_cast<int>(key.in) | static_cast<int>(key.out) << 4 | int{key.transposed_a} << 8 |
                      int{key.transposed_b} << 9 | int{key.bias} << 10 | int{key.accumulate} << 11;
    return mix64(hash ^ static_cast<std::uint64_t>(flags));
  }
};

memory::data_type data_type_of(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

memory::desc description_of(std::int64_t rows, std::int64_t columns, std::int64_t stride, bool transposed,
                            DType dtype) {
  return {{rows, columns}, data_type_of(dtype), transposed ? memory::dims{1, stride} : memory::dims{stride, 1}};
}

// One for the process, since each thread keeps a stream and a stream belongs to its engine.
const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Plan {
  memory::desc a, b, bias, d, scratch;
  dnnl::matmul matmul;
};

// A plan in one thread's hands: with arguments of its own, so that a call allocates nothing and waits for no lock.
class ThreadPlan {
 public:
  explicit ThreadPlan(const Plan& plan) : matmul_(plan.matmul), scratch_bytes_(plan.scratch.get_size()) {
    set(kA, DNNL_ARG_SRC, plan.a);
    set(kB, DNNL_ARG_WEIGHTS, plan.b);
    set(kD, DNNL_ARG_DST, plan.d);
    if (!plan.bias.is_zero()) {
      set(kBias, DNNL_ARG_BIAS, plan.bias);
    }
    if (scratch_bytes_ != 0) {
      set(kScratch, DNNL_ARG_SCRATCHPAD, plan.scratch);
    }
  }
  ThreadPlan(const ThreadPlan&) = delete;
  ThreadPlan& operator=(const ThreadPlan&) = delete;

  [[nodiscard]] std::size_t scratch_bytes() const { return scratch_bytes_; }

  void execute(const Gemm& gemm, void* scratch) {
    const std::array<void*, kOperands> data = {gemm.a.data, gemm.b.data, gemm.d.data, const_cast<void*>(gemm.bias),
                                               scratch};
    std::array<dnnl_exec_arg_t, kOperands> arguments{};
    int count = 0;
    for (std::size_t i = 0; i < kOperands; ++i) {
      if (memories_[i]) {
        memories_[i].set_data_handle(data[i]);
        arguments[static_cast<std::size_t>(count++)] = {names_[i], memories_[i].get()};
      }
    }
    thread_local const dnnl::stream stream(cpu_engine());
    dnnl::error::wrap_c_api(dnnl_primitive_execute(matmul_.get(), stream.get(), count, arguments.data()),
                            "a matrix product failed");
  }

 private:
  enum Operand : std::uint8_t { kA, kB, kD, kBias, kScratch, kOperands };

  void set(Operand operand, int name, const memory::desc& description) {
    memories_[operand] = memory(description, cpu_engine(), nullptr);
    names_[operand] = name;
  }

  dnnl::matmul matmul_;
  std::size_t scratch_bytes_;
  std::array<memory, kOperands> memories_;  // null: the product has no such operand
  std::array<int, kOperands> names_{};
};

std::byte* offset(const Matrix& matrix, std::int64_t elements) {
  return static_cast<std::byte*>(matrix.data) + static_cast<std::size_t>(elements) * size_of(matrix.dtype);
}

void copy_rows(const Matrix& from, const Matrix& to) {
  for (std::int64_t row = 0; row < from.rows; ++row) {
    std::memcpy(offset(to, row * to.stride), offset(from, row * from.stride),
                static_cast<std::size_t>(from.columns) * size_of(from.dtype));
  }
}

// One column whose elements lie apart, copied together into `packed`; any other matrix as it is. oneDNN 3.7 takes a
// vector for dense, whatever its stride says.
Matrix without_gaps(const Matrix& matrix, std::vector<std::byte>& packed) {
  if (matrix.columns != 1 || matrix.rows == 1 || matrix.stride == 1) {
    return matrix;
  }
  packed.resize(static_cast<std::size_t>(matrix.rows) * size_of(matrix.dtype));
  Matrix dense = matrix;
  dense.data = packed.data();
  dense.stride = 1;
  copy_rows(matrix, dense);
  return dense;
}

bool has_avx512() {
  static const bool has = [] {
    const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    const auto avx512 = static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
    return (isa & avx512) == avx512;
  }();
  return has;
}

// Below AVX-512 oneDNN packs an operand a few columns at a time, from the first row to the last. Where the rows lie a
// multiple of 4 KiB apart, these columns all fall into the same sets of the cache, and half the time goes there: such a
// matrix is copied, row by row, to where its rows lie otherwise. Read along its rows (`is_by_rows`) it is no trouble.
Matrix without_conflicts(const Matrix& matrix, bool is_by_rows, std::vector<std::byte>& copy) {
  constexpr std::size_t kConflictBytes = 4096;
  constexpr std::int64_t kPadding = 16;
  const std::size_t stride_bytes = static_cast<std::size_t>(matrix.stride) * size_of(matrix.dtype);
  if (has_avx512() || is_by_rows || matrix.rows == 1 || stride_bytes % kConflictBytes != 0) {
    return matrix;
  }
  Matrix apart = matrix;
  apart.stride = matrix.columns + kPadding;
  copy.resize(static_cast<std::size_t>(apart.rows * apart.stride) * size_of(apart.dtype));
  apart.data = copy.data();
  copy_rows(matrix, apart);
  return apart;
}

// Grows to the largest scratchpad that its thread has met.
std::vector<std::byte>& thread_scratch(std::size_t size_bytes) {
  thread_local std::vector<std::byte> scratch;
  if (scratch.size() < size_bytes + 64) {
    scratch.resize(size_bytes + 64);
  }
  return scratch;
}

void use_one_openmp_thread() {
  thread_local const bool done = [] {
    omp_set_num_threads(1);
    return true;
  }();
  (void)done;
}

// Chunk `index` of `chunks` over [0, size), in granules.
struct Range {
  std::int64_t begin, size;
};
Range range_of(std::int64_t index, std::int64_t chunks, std::int64_t size) {
  const std::int64_t granules = (size + kChunkGranule - 1) / kChunkGranule;
  const std::int64_t begin = std::min(size, granules * index / chunks * kChunkGranule);
  const std::int64_t end = std::min(size, granules * (index + 1) / chunks * kChunkGranule);
  return {begin, end - begin};
}

// Rows [begin, begin + size) of d.
Gemm rows_of(const Gemm& gemm, Range range) {
  Gemm part = gemm;
  part.a.data = offset(gemm.a, gemm.a.transposed ? range.begin : range.begin * gemm.a.stride);
  (gemm.a.transposed ? part.a.columns : part.a.rows) = range.size;
  part.d.data = offset(gemm.d, range.begin * gemm.d.stride);
  part.d.rows = range.size;
  return part;
}

// Columns [begin, begin + size) of d.
Gemm columns_of(const Gemm& gemm, Range range) {
  Gemm part = gemm;
  part.b.data = offset(gemm.b, gemm.b.transposed ? range.begin * gemm.b.stride : range.begin);
  (gemm.b.transposed ? part.b.rows : part.b.columns) = range.size;
  part.d.data = offset(gemm.d, range.begin);
  part.d.columns = range.size;
  if (gemm.bias != nullptr) {
    part.bias =
        static_cast<const std::byte*>(gemm.bias) + static_cast<std::size_t>(range.begin) * size_of(gemm.a.dtype);
  }
  return part;
}

}  // namespace

struct GemmCache::State {
  State() { has_native_bf16 = can_describe_bf16(); }

  bool has_native_bf16 = true;
  std::mutex mutex;
  std::unordered_map<Key, std::unique_ptr<Plan>, KeyHash> plans;

  // A plan depends on nothing but its key, so a thread keeps what it has met for all caches: far more than a model has,
  // and not without end where each prompt has a length of its own.
  ThreadPlan& thread_plan_for(const Key& key) {
    constexpr std::size_t kMostPlans = 4096;
    thread_local std::unordered_map<Key, ThreadPlan, KeyHash> thread_plans;
    const auto found = thread_plans.find(key);
    if (found != thread_plans.end()) {
      return found->second;
    }
    if (thread_plans.size() == kMostPlans) {
      thread_plans.clear();
    }
    return thread_plans.try_emplace(key, plan_for(key)).first->second;
  }

  const Plan& plan_for(const Key& key) {
    const std::scoped_lock lock(mutex);
    std::unique_ptr<Plan>& plan = plans[key];
    if (!plan) {
      plan = make_plan(key);
    }
    return *plan;
  }

  [[nodiscard]] bool can_describe_bf16() const {
    constexpr std::int64_t kSize = 64;
    try {
      static_cast<void>(make_plan({.m = kSize,
                                   .n = kSize,
                                   .k = kSize,
                                   .stride_a = kSize,
                                   .stride_b = kSize,
                                   .stride_d = kSize,
                                   .in = DType::kBF16,
                                   .out = DType::kBF16,
                                   .transposed_a = false,
                                   .transposed_b = false,
                                   .bias = false,
                                   .accumulate = false}));
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  [[nodiscard]] std::unique_ptr<Plan> make_plan(const Key& key) const {
    MatmulDescription matmul;
    matmul.a = description_of(key.m, key.k, key.stride_a, key.transposed_a, key.in);
    matmul.b = description_of(key.k, key.n, key.stride_b, key.transposed_b, key.in);
    if (key.bias) {
      matmul.bias = description_of(1, key.n, key.n, false, key.in);
    }
    matmul.d = description_of(key.m, key.n, key.stride_d, false, key.out);
    matmul.attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (key.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      matmul.attributes.set_post_ops(sum);
    }
    try {
      const auto primitive = describe_matmul(matmul, cpu_engine());
      return std::make_unique<Plan>(
          Plan{matmul.a, matmul.b, matmul.bias, matmul.d, primitive.scratchpad_desc(), dnnl::matmul(primitive)});
    } catch (const dnnl::error& error) {
      fail(ErrorCode::kUnsupported, "gemm: oneDNN refuses [{}, {}] x [{}, {}] in {} on this processor: {}", key.m,
           key.k, key.k, key.n, name_of(key.in), error.what());
    }
  }
};

GemmCache::GemmCache() : state_(std::make_unique<State>()) {}
GemmCache::~GemmCache() = default;

bool GemmCache::has_native(DType working) const {
  return working == DType::kF32 || (working == DType::kBF16 && state_->has_native_bf16);
}

void GemmCache::run(const Gemm& gemm, ThreadPool& pool) {
  if (!has_native(gemm.a.dtype)) {
    multiply_widened(gemm, &pool, [&](const Gemm& wide) { run(wide, pool); });
    return;
  }
  const std::int64_t m = gemm.d.rows;
  const std::int64_t n = gemm.d.columns;
  const std::int64_t k = gemm.a.transposed ? gemm.a.rows : gemm.a.columns;
  const bool by_columns = n >= m;
  const std::int64_t chunks = chunks_of(m, n, k);
  if (m == 0 || n == 0) {
    return;
  }
  pool.parallel_for(static_cast<std::size_t>(chunks), [&](std::size_t chunk) {
    const Range range = range_of(static_cast<std::int64_t>(chunk), chunks, by_columns ? n : m);
    run_here(by_columns ? columns_of(gemm, range) : rows_of(gemm, range));
  });
}

void GemmCache::run_each(std::span<const Gemm> products, ThreadPool& pool) {
  pool.parallel_for(products.size(), [&](std::size_t product) { run_here(products[product]); });
}

void GemmCache::run_here(const Gemm& gemm) {
  if (!has_native(gemm.a.dtype)) {
    multiply_widened(gemm, nullptr, [&](const Gemm& wide) { run_here(wide); });
    return;
  }
  const std::int64_t m = gemm.d.rows;
  const std::int64_t n = gemm.d.columns;
  const std::int64_t k = gemm.a.transposed ? gemm.a.rows : gemm.a.columns;
  assert((gemm.a.transposed ? gemm.a.columns : gemm.a.rows) == m);
  assert((gemm.b.transposed ? gemm.b.columns : gemm.b.rows) == k);
  assert((gemm.b.transposed ? gemm.b.rows : gemm.b.columns) == n);
  assert(gemm.a.dtype == gemm.b.dtype && !(gemm.accumulate && gemm.bias != nullptr));
  if (m == 0 || n == 0) {
    return;
  }
  if (k == 0) {
    assert(gemm.bias == nullptr);
    for (std::int64_t row = 0; row < m && !gemm.accumulate; ++row) {
      std::byte* begin = offset(gemm.d, row * gemm.d.stride);
      std::fill(begin, begin + static_cast<std::size_t>(n) * size_of(gemm.d.dtype), std::byte{0});
    }
    return;
  }

  use_one_openmp_thread();
  thread_local std::vector<std::byte> packed_a;
  thread_local std::vector<std::byte> packed_b;
  thread_local std::vector<std::byte> packed_d;
  Gemm dense = gemm;
  dense.a = without_conflicts(without_gaps(gemm.a, packed_a), !gemm.a.transposed, packed_a);
  dense.b = without_conflicts(without_gaps(gemm.b, packed_b), gemm.b.transposed, packed_b);
  dense.d = without_gaps(gemm.d, packed_d);
  ThreadPlan& plan =
      state_->thread_plan_for({m, n, k, dense.a.stride, dense.b.stride, dense.d.stride, gemm.a.dtype, gemm.d.dtype,
                               gemm.a.transposed, gemm.b.transposed, gemm.bias != nullptr, gemm.accumulate});
  std::byte* scratch = thread_scratch(plan.scratch_bytes()).data();
  scratch += -reinterpret_cast<std::uintptr_t>(scratch) & 63U;
  plan.execute(dense, scratch);
  if (dense.d.data != gemm.d.data) {
    copy_rows(dense.d, gemm.d);
  }
}

}  // namespace lockstep::cpu
