#include "ops/cuda/gemm.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/cuda/library.h"
#include "base/cuda/runtime.h"
#include "base/error.h"
#include "ops/cuda/elementwise.h"
#include "ops/cuda/matrices.h"

namespace lockstep::cuda {
namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;

// The functions that are used, by their names without the prefix.
struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtGetStatusString) status_string;

  Library() {
    const SharedLibrary library("libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR));
    library.find("cublasLtCreate", create);
    library.find("cublasLtDestroy", destroy);
    library.find("cublasLtMatmul", matmul);
    library.find("cublasLtMatmulDescCreate", desc_create);
    library.find("cublasLtMatmulDescDestroy", desc_destroy);
    library.find("cublasLtMatmulDescSetAttribute", desc_set);
    library.find("cublasLtMatrixLayoutCreate", layout_create);
    library.find("cublasLtMatrixLayoutDestroy", layout_destroy);
    library.find("cublasLtMatmulPreferenceCreate", preference_create);
    library.find("cublasLtMatmulPreferenceDestroy", preference_destroy);
    library.find("cublasLtMatmulPreferenceSetAttribute", preference_set);
    library.find("cublasLtMatmulAlgoGetHeuristic", heuristic);
    library.find("cublasLtGetStatusString", status_string);
  }

  void check(cublasStatus_t status, const char* operation) const {
    if (status != CUBLAS_STATUS_SUCCESS) {
      fail(ErrorCode::kDevice, "gemm: {}: {}", operation, status_string(status));
    }
  }
};

const Library& library() {
  static const Library functions;
  return functions;
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_16F;
}

// Bytes that an operand's rows begin at multiples of, up to 16.
std::uint32_t alignment_of(const Matrix& matrix) {
  const auto bits = reinterpret_cast<std::uintptr_t>(matrix.data) |
                    static_cast<std::uintptr_t>(matrix.stride) * size_of(matrix.dtype) | 16U;
  return 1U << std::countr_zero(bits);
}

// Everything that a plan depends on.
struct OperandKey {
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;
  std::uint32_t alignment = 0;
  DType dtype = DType::kF32;
  bool transposed = false;

  explicit OperandKey(const Matrix& m)
      : rows(m.rows),
        columns(m.columns),
        stride(m.stride),
        alignment(alignment_of(m)),
        dtype(m.dtype),
        transposed(m.transposed) {}
  friend bool operator==(const OperandKey&, const OperandKey&) = default;
};
struct Key {
  OperandKey a, b, d;
  bool has_bias;
  Epilogue epilogue;
  friend bool operator==(const Key&, const Key&) = default;
};
struct KeyHash {
  std::size_t operator()(const Key& key) const {
    std::uint64_t hash = (key.has_bias ? 1U : 0U) + 2U * static_cast<std::uint64_t>(key.epilogue);
    const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x9E3779B97F4A7C15U + (hash >> 29); };
    for (const OperandKey& operand : {key.a, key.b, key.d}) {
      mix(static_cast<std::uint64_t>(operand.rows));
      mix(static_cast<std::uint64_t>(operand.columns));
      mix(static_cast<std::uint64_t>(operand.stride));
      mix(operand.alignment * 16U + static_cast<std::uint64_t>(operand.dtype) * 2U + (operand.transposed ? 1U : 0U));
    }
    return hash;
  }
};

class Layout {
 public:
  // cuBLASLt thinks in columns: a matrix in rows is its own transpose to it.
  explicit Layout(const Matrix& matrix) {
    library().check(library().layout_create(&layout_, type_of(matrix.dtype), static_cast<std::uint64_t>(matrix.columns),
                                            static_cast<std::uint64_t>(matrix.rows), matrix.stride),
                    "describing a matrix");
  }
  ~Layout() { static_cast<void>(library().layout_destroy(layout_)); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
  [[nodiscard]] cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

class Description {
 public:
  explicit Description(cublasComputeType_t compute) {
    library().check(library().desc_create(&description_, compute, CUDA_R_32F), "describing a product");
  }
  ~Description() { static_cast<void>(library().desc_destroy(description_)); }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;
  [[nodiscard]] cublasLtMatmulDesc_t get() const { return description_; }
  template <typename Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    library().check(library().desc_set(description_, attribute, &value, sizeof(value)), "describing a product");
  }

 private:
  cublasLtMatmulDesc_t description_ = nullptr;
};

class Preference {
 public:
  Preference() { library().check(library().preference_create(&preference_), "choosing an algorithm"); }
  ~Preference() { static_cast<void>(library().preference_destroy(preference_)); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;
  [[nodiscard]] cublasLtMatmulPreference_t get() const { return preference_; }
  template <typename Value>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, const Value& value) {
    library().check(library().preference_set(preference_, attribute, &value, sizeof(value)), "choosing an algorithm");
  }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

constexpr std::int64_t kGranule = 8;
constexpr std::int64_t kWorthCutting = 1024;
bool is_awkward(std::int64_t size) { return size > kWorthCutting && size % kGranule != 0; }

std::int64_t inner_size(const Gemm& gemm) { return gemm.a.transposed ? gemm.a.rows : gemm.a.columns; }

// Rows [row, row + rows) and columns [column, column + columns) of what a product uses.
Matrix part_of(const Matrix& matrix, std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
  Matrix part = matrix;
  if (matrix.transposed) {
    std::swap(row, column);
    std::swap(rows, columns);
  }
  part.data = static_cast<std::byte*>(matrix.data) +
              static_cast<std::size_t>(row * matrix.stride + column) * size_of(matrix.dtype);
  part.rows = rows;
  part.columns = columns;
  return part;
}

Gemm columns_of(const Gemm& gemm, std::int64_t begin, std::int64_t count) {
  Gemm part = gemm;
  part.b = part_of(gemm.b, 0, inner_size(gemm), begin, count);
  part.d = part_of(gemm.d, 0, gemm.d.rows, begin, count);
  if (gemm.bias != nullptr) {
    part.bias = static_cast<const std::byte*>(gemm.bias) + static_cast<std::size_t>(begin) * size_of(gemm.a.dtype);
  }
  return part;
}

Gemm rows_of(const Gemm& gemm, std::int64_t begin, std::int64_t count) {
  Gemm part = gemm;
  part.a = part_of(gemm.a, begin, count, 0, inner_size(gemm));
  part.d = part_of(gemm.d, begin, count, 0, gemm.d.columns);
  return part;
}

Gemm inner_part_of(const Gemm& gemm, std::int64_t begin, std::int64_t count) {
  Gemm part = gemm;
  part.a = part_of(gemm.a, 0, gemm.d.rows, begin, count);
  part.b = part_of(gemm.b, begin, count, 0, gemm.d.columns);
  if (begin > 0) {
    part.bias = nullptr;
    part.accumulate = true;
  }
  return part;
}

// With d^T = b^T a^T, cuBLASLt's first operand is b and its second a.
struct Plan {
  // `tf32` matters to products of f32 only.
  Plan(const Gemm& gemm, bool tf32)
      : description(tf32 && gemm.a.dtype == DType::kF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F),
        first(gemm.b),
        second(gemm.a),
        out(gemm.d) {
    description.set(CUBLASLT_MATMUL_DESC_TRANSA, gemm.b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    description.set(CUBLASLT_MATMUL_DESC_TRANSB, gemm.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  }

  Description description;
  Layout first;
  Layout second;
  Layout out;
  cublasLtMatmulAlgo_t algorithm{};
  bool is_fused = false;  // bias and activation are part of it
};

cublasLtEpilogue_t epilogue_of(const Gemm& gemm) {
  switch (gemm.epilogue) {
    case Epilogue::kGelu:
      return gemm.bias != nullptr ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::kGeluGradient:
      return CUBLASLT_EPILOGUE_DGELU;
    case Epilogue::kNone:
      break;
  }
  return CUBLASLT_EPILOGUE_BIAS;
}

// Which memory bias and activation use in this call.
void set_pointers(const Gemm& gemm, Plan& plan) {
  if (gemm.bias != nullptr) {
    plan.description.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, gemm.bias);
  }
  if (gemm.epilogue != Epilogue::kNone) {
    plan.description.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, gemm.before.data());
  }
}

}  // namespace

struct GemmCache::Impl {
  explicit Impl(bool with_tf32) : tf32(with_tf32), workspace(allocate_device(kWorkspaceBytes)) {
    if (tf32 && !is_ampere) {
      fail_for_want_of("TF32; leave out device.tf32");
    }
    library().check(library().create(&handle), "starting");
  }
  ~Impl() { static_cast<void>(library().destroy(handle)); }

  // Whether cuBLASLt has an algorithm for `plan`.
  bool choose_algorithm(const Gemm& gemm, Plan& plan) const {
    Preference preference;
    preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(gemm.b));
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(gemm.a));
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(gemm.d));
    preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(gemm.d));
    if (gemm.d.dtype == DType::kF16) {  // where the inner dimension is split, its parts' sums may overflow as f16
      const std::uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
      preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
    }
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status =
        library().heuristic(handle, plan.description.get(), plan.first.get(), plan.second.get(), plan.out.get(),
                            plan.out.get(), preference.get(), 1, &result, &found);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
      return false;
    }
    plan.algorithm = result.algo;
    return true;
  }

  std::unique_ptr<Plan> make_plan(const Gemm& gemm) const {
    if (gemm.bias != nullptr || gemm.epilogue != Epilogue::kNone) {
      auto plan = std::make_unique<Plan>(gemm, tf32);
      plan->is_fused = true;
      plan->description.set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(gemm));
      if (gemm.bias != nullptr) {
        plan->description.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<std::int32_t>(type_of(gemm.a.dtype)));
      }
      if (gemm.epilogue != Epilogue::kNone) {
        plan->description.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, gemm.d.columns);
      }
      set_pointers(gemm, *plan);
      if (choose_algorithm(gemm, *plan)) {
        return plan;
      }
    }
    auto plan = std::make_unique<Plan>(gemm, tf32);
    if (!choose_algorithm(gemm, *plan)) {
      fail(ErrorCode::kUnsupported, "gemm: cuBLASLt has no algorithm for {} x {} x {} in {} to {}", gemm.d.rows,
           gemm.a.transposed ? gemm.a.rows : gemm.a.columns, gemm.d.columns, name_of(gemm.a.dtype),
           name_of(gemm.d.dtype));
    }
    return plan;
  }

  bool tf32;
  bool is_ampere = compute_capability() >= kAmpere;  // or newer
  cublasLtHandle_t handle = nullptr;
  Buffer workspace;
  std::unordered_map<Key, std::unique_ptr<Plan>, KeyHash> plans;
};

GemmCache::GemmCache(bool tf32) : impl_(std::make_unique<Impl>(tf32)) {}
GemmCache::~GemmCache() = default;

bool GemmCache::has_native(DType working) const { return working != DType::kBF16 || impl_->is_ampere; }

// The fast kernels take no sizes along memory and no inner ones that are odd, or otherwise no multiple of 8, as
// vocabularies often are: those become two products, of the largest multiple and of the rest.
void GemmCache::run(const Gemm& gemm) {
  const std::int64_t k = inner_size(gemm);
  if (gemm.d.rows == 0 || gemm.d.columns == 0) {
    return;
  }
  if (gemm.epilogue != Epilogue::kNone) {
    run_whole(gemm);
  } else if (is_awkward(gemm.d.columns)) {
    const std::int64_t most = gemm.d.columns / kGranule * kGranule;
    run(columns_of(gemm, 0, most));
    run(columns_of(gemm, most, gemm.d.columns - most));
  } else if (is_awkward(gemm.d.rows) && gemm.a.transposed) {
    const std::int64_t most = gemm.d.rows / kGranule * kGranule;
    run(rows_of(gemm, 0, most));
    run(rows_of(gemm, most, gemm.d.rows - most));
  } else if (is_awkward(k)) {
    const std::int64_t most = k / kGranule * kGranule;
    run(inner_part_of(gemm, 0, most));
    run(inner_part_of(gemm, most, k - most));
  } else {
    run_whole(gemm);
  }
}

void GemmCache::run_whole(const Gemm& gemm) {
  const std::int64_t k = inner_size(gemm);
  const cudaStream_t stream = compute_stream().get();
  if (k == 0) {
    if (!gemm.accumulate) {
      check(cudaMemset2DAsync(gemm.d.data, static_cast<std::size_t>(gemm.d.stride) * size_of(gemm.d.dtype), 0,
                              static_cast<std::size_t>(gemm.d.columns) * size_of(gemm.d.dtype),
                              static_cast<std::size_t>(gemm.d.rows), stream),
            "gemm");
    }
  } else {
    const Key key{OperandKey(gemm.a), OperandKey(gemm.b), OperandKey(gemm.d), gemm.bias != nullptr, gemm.epilogue};
    std::unique_ptr<Plan>& plan = impl_->plans[key];
    if (plan == nullptr) {
      if (!has_native(gemm.a.dtype)) {
        fail_for_want_of("bf16; set train.precision: fp16 or fp32");
      }
      plan = impl_->make_plan(gemm);
    }
    if (plan->is_fused) {
      set_pointers(gemm, *plan);
    }
    const float alpha = 1;
    const float beta = gemm.accumulate ? 1 : 0;
    library().check(
        library().matmul(impl_->handle, plan->description.get(), &alpha, gemm.b.data, plan->first.get(), gemm.a.data,
                         plan->second.get(), &beta, gemm.d.data, plan->out.get(), gemm.d.data, plan->out.get(),
                         &plan->algorithm, impl_->workspace.data(), kWorkspaceBytes, stream),
        "multiplying");
    if (plan->is_fused) {
      return;
    }
  }
  if (gemm.bias != nullptr) {
    add_bias(gemm.d, gemm.bias, gemm.a.dtype, stream);
  }
  const Tensor d(gemm.d.data, gemm.before.shape(), gemm.d.dtype);
  if (gemm.epilogue == Epilogue::kGelu) {
    check(cudaMemcpyAsync(gemm.before.data(), d.data(), d.size_bytes(), cudaMemcpyDeviceToDevice, stream), "gelu");
    gelu_forward(gemm.before, d, stream);
  } else if (gemm.epilogue == Epilogue::kGeluGradient) {
    gelu_backward(gemm.before, d, d, stream);
  }
}

}  // namespace lockstep::cuda
