// A libcublasLt for the emulator: products whose terms are added in f64, in their order, with the epilogues that the
// project asks for. Matrices lie in columns.
#include <cublasLt.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "tests/cuda_emulator/stream.h"

struct cublasLtContext {};

extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);  // the program's

namespace {

struct Preference {
  std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;  // all
};

struct Layout {
  cudaDataType type;
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t stride;  // between columns
};
struct Description {
  bool tf32 = false;  // factors in f32 are rounded to 10 bits of mantissa
  cublasOperation_t first = CUBLAS_OP_N;
  cublasOperation_t second = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  std::int32_t bias_type = -1;
  void* aux = nullptr;
  std::int64_t aux_stride = 0;
};

const Layout& layout_of(cublasLtMatrixLayout_t opaque) { return *reinterpret_cast<const Layout*>(opaque); }
Description& description_of(cublasLtMatmulDesc_t opaque) { return *reinterpret_cast<Description*>(opaque); }

float read(const void* data, cudaDataType type, std::int64_t i) {
  if (type == CUDA_R_32F) {
    return static_cast<const float*>(data)[i];
  }
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[i];
  return type == CUDA_R_16F ? lockstep::from_f16(bits) : std::bit_cast<float>(std::uint32_t{bits} << 16);
}
void write(void* data, cudaDataType type, std::int64_t i, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(data)[i] = value;
    return;
  }
  auto& element = static_cast<std::uint16_t*>(data)[i];
  if (type == CUDA_R_16F) {
    element = lockstep::to_f16(value);
    return;
  }
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = std::isnan(value) ? 0x7FFF0000U : bits + 0x7FFFU + (bits >> 16 & 1U);
  element = static_cast<std::uint16_t>(rounded >> 16);
}

constexpr float kGeluScale = 0.7978845608F;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715F;
float gelu(float x) { return 0.5F * x * (1 + std::tanh(kGeluScale * (x + kGeluCubic * x * x * x))); }
float gelu_slope(float x) {
  const float t = std::tanh(kGeluScale * (x + kGeluCubic * x * x * x));
  return 0.5F * (1 + t) + 0.5F * x * (1 - t * t) * kGeluScale * (1 + 3 * kGeluCubic * x * x);
}

float rounded_to_tf32(float value) {
  constexpr std::uint32_t kDropped = 13;  // bits
  const auto bits = std::bit_cast<std::uint32_t>(value) + (1U << (kDropped - 1));
  return std::isfinite(value) ? std::bit_cast<float>(bits >> kDropped << kDropped) : value;
}

// op(matrix), `rows` x `columns`, in rows.
std::vector<double> in_rows(const void* data, const Layout& layout, cublasOperation_t operation, std::int64_t rows,
                            std::int64_t columns, bool tf32) {
  std::vector<double> values(static_cast<std::size_t>(rows * columns));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const std::int64_t i = operation == CUBLAS_OP_N ? column * layout.stride + row : row * layout.stride + column;
      const float value = read(data, layout.type, i);
      values[static_cast<std::size_t>(row * columns + column)] = tf32 ? rounded_to_tf32(value) : value;
    }
  }
  return values;
}

struct Product {
  Description description;
  Layout first, second, out;
  const void* first_data;
  const void* second_data;
  void* out_data;
  float alpha, beta;

  void operator()() const {
    const std::int64_t rows = out.rows;
    const std::int64_t columns = out.columns;
    const std::int64_t inner = description.first == CUBLAS_OP_N ? first.columns : first.rows;
    // The transpose of the result, column by column of it, so that the innermost loop runs along memory.
    const std::vector<double> a = in_rows(
        first_data, first, description.first == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N, inner, rows, description.tf32);
    const std::vector<double> b = in_rows(second_data, second, description.second, inner, columns, description.tf32);
    std::vector<double> sums(static_cast<std::size_t>(rows));
    for (std::int64_t column = 0; column < columns; ++column) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (std::int64_t k = 0; k < inner; ++k) {
        const double factor = b[static_cast<std::size_t>(k * columns + column)];
        const double* const from = a.data() + k * rows;
        for (std::int64_t row = 0; row < rows; ++row) {
          sums[static_cast<std::size_t>(row)] += factor * from[row];
        }
      }
      for (std::int64_t row = 0; row < rows; ++row) {
        finish(row, column, static_cast<float>(sums[static_cast<std::size_t>(row)]));
      }
    }
  }

 private:
  void finish(std::int64_t row, std::int64_t column, float sum) const {
    const std::int64_t i = column * out.stride + row;
    const std::int64_t aux = column * description.aux_stride + row;
    float value = alpha * sum;
    if (beta != 0) {
      value += beta * read(out_data, out.type, i);
    }
    switch (description.epilogue) {
      case CUBLASLT_EPILOGUE_BIAS:
        value += bias(row);
        break;
      case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
        value += bias(row);
        [[fallthrough]];
      case CUBLASLT_EPILOGUE_GELU_AUX:
        write(description.aux, out.type, aux, value);
        value = gelu(value);
        break;
      case CUBLASLT_EPILOGUE_DGELU:
        value *= gelu_slope(read(description.aux, out.type, aux));
        break;
      default:
        break;
    }
    write(out_data, out.type, i, value);
  }
  [[nodiscard]] float bias(std::int64_t row) const {
    return read(description.bias, static_cast<cudaDataType>(description.bias_type), row);
  }
};

template <typename T>
cublasStatus_t copy_attribute(T& to, const void* from, std::size_t size_bytes) {
  if (size_bytes != sizeof(T)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  std::memcpy(&to, from, size_bytes);
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS ? "success" : "the emulator's cuBLASLt takes no such argument";
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t stride) {
  if ((type != CUDA_R_32F && type != CUDA_R_16BF && type != CUDA_R_16F) || stride < static_cast<std::int64_t>(rows)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(
      new Layout{type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(columns), stride});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<Layout*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description, cublasComputeType_t compute,
                                        cudaDataType_t /*scale_type*/) {
  *description =
      reinterpret_cast<cublasLtMatmulDesc_t>(new Description{.tf32 = compute == CUBLAS_COMPUTE_32F_FAST_TF32});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete &description_of(description);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t size_bytes) {
  Description& description = description_of(opaque);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return copy_attribute(description.first, value, size_bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return copy_attribute(description.second, value, size_bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return copy_attribute(description.epilogue, value, size_bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return copy_attribute(description.bias, value, size_bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return copy_attribute(description.bias_type, value, size_bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return copy_attribute(description.aux, value, size_bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return copy_attribute(description.aux_stride, value, size_bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(new Preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete reinterpret_cast<Preference*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t size_bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
    return copy_attribute(reinterpret_cast<Preference*>(preference)->reductions, value, size_bytes);
  }
  return CUBLAS_STATUS_SUCCESS;
}

// As on a GPU, epilogues with an activation want rows that begin at multiples of 16 bytes, and those before Ampere have
// no products of bf16. Who wants f16 has to say that sums of a split are not to be added in it: they might overflow.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t first, cublasLtMatrixLayout_t /*second*/,
                                              cublasLtMatrixLayout_t /*before*/, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t preference, int /*wanted*/,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  const Description& wanted = description_of(description);
  const bool has_activation = wanted.epilogue != CUBLASLT_EPILOGUE_DEFAULT && wanted.epilogue != CUBLASLT_EPILOGUE_BIAS;
  int generation = 0;
  static_cast<void>(cudaDeviceGetAttribute(&generation, cudaDevAttrComputeCapabilityMajor, 0));
  const bool has_type = layout_of(first).type != CUDA_R_16BF || generation >= 8;
  const bool may_overflow = layout_of(out).type == CUDA_R_16F &&
                            (reinterpret_cast<Preference*>(preference)->reductions &
                             (CUBLASLT_REDUCTION_SCHEME_INPLACE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE)) != 0;
  *found = has_type && !may_overflow && (!has_activation || layout_of(out).rows % 8 == 0) ? 1 : 0;
  *results = {};
  return *found == 1 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t /*handle*/, cublasLtMatmulDesc_t description, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t first, const void* b, cublasLtMatrixLayout_t second,
                              const void* beta, const void* /*c*/, cublasLtMatrixLayout_t /*before*/, void* d,
                              cublasLtMatrixLayout_t out, const cublasLtMatmulAlgo_t* /*algorithm*/,
                              void* /*workspace*/, std::size_t /*workspace_bytes*/, cudaStream_t stream) {
  for (const void* operand : {a, b, static_cast<const void*>(d)}) {
    if (!stream->is_on_device(operand)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
  }
  stream->enqueue(Product{description_of(description), layout_of(first), layout_of(second), layout_of(out), a, b, d,
                          *static_cast<const float*>(alpha), *static_cast<const float*>(beta)});
  return CUBLAS_STATUS_SUCCESS;
}
