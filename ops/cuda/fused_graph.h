// cuDNN's backend interface with owners and errors of this project: a computation is written down as a graph of
// elementary operations, and cuDNN chooses and compiles a kernel that does it all.
//
// cuDNN is opened when a Cudnn is made; the headers alone are needed to build. Everything here throws
// Error(kUnsupported) that names the step of the graph, the attribute by its number in NVIDIA's cudnn_graph.h, and
// cuDNN's own words: whoever builds a graph falls back to something else.
#pragma once

#include <cudnn_graph.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/cuda/library.h"
#include "base/error.h"

namespace lockstep::cuda {

class Cudnn {
 public:
  Cudnn() : library_("libcudnn.so.9") {
    library_.find("cudnnGetVersion", get_version);
    library_.find("cudnnGetErrorString", get_error_string);
    library_.find("cudnnGetLastErrorString", get_last_error_string);
    library_.find("cudnnCreate", create);
    library_.find("cudnnDestroy", destroy);
    library_.find("cudnnSetStream", set_stream);
    library_.find("cudnnBackendCreateDescriptor", create_descriptor);
    library_.find("cudnnBackendDestroyDescriptor", destroy_descriptor);
    library_.find("cudnnBackendSetAttribute", set_attribute);
    library_.find("cudnnBackendGetAttribute", get_attribute);
    library_.find("cudnnBackendFinalize", finalize);
    library_.find("cudnnBackendExecute", execute);
  }

  // Throws Error(code) that says which `step` of what failed and what cuDNN says about it.
  void check(cudnnStatus_t status, ErrorCode code, std::string_view object, std::string_view step) const {
    if (status != CUDNN_STATUS_SUCCESS) {
      std::array<char, 1024> text{};
      get_last_error_string(text.data(), text.size());
      fail(code, "cudnn: {}: {}: {} ({})", object, step, get_error_string(status), text.data());
    }
  }

  decltype(&cudnnGetVersion) get_version = nullptr;
  decltype(&cudnnGetErrorString) get_error_string = nullptr;
  decltype(&cudnnGetLastErrorString) get_last_error_string = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnDestroy) destroy = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;

 private:
  SharedLibrary library_;
};

class Handle {
 public:
  explicit Handle(const Cudnn& cudnn) : cudnn_(cudnn) {
    cudnn.check(cudnn.create(&handle_), ErrorCode::kUnsupported, "handle", "creating");
  }
  ~Handle() { static_cast<void>(cudnn_.destroy(handle_)); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  [[nodiscard]] cudnnHandle_t get() const { return handle_; }

 private:
  const Cudnn& cudnn_;
  cudnnHandle_t handle_ = nullptr;
};

// One of cuDNN's descriptors.
class Descriptor {
 public:
  Descriptor(const Cudnn& cudnn, cudnnBackendDescriptorType_t type, std::string name)
      : cudnn_(&cudnn), name_(std::move(name)) {
    check(cudnn_->create_descriptor(type, &descriptor_), "creating");
  }
  ~Descriptor() {
    if (descriptor_ != nullptr) {
      static_cast<void>(cudnn_->destroy_descriptor(descriptor_));
    }
  }
  Descriptor(Descriptor&& other) noexcept
      : cudnn_(other.cudnn_), name_(std::move(other.name_)), descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(cudnn_, other.cudnn_);
    std::swap(name_, other.name_);
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  [[nodiscard]] cudnnBackendDescriptor_t get() const { return descriptor_; }

  template <typename T>
  void set(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, const T& value) {
    set_all(attribute, type, std::span(&value, 1));
  }
  void set(cudnnBackendAttributeName_t attribute, cudnnBackendDescriptor_t other) {
    set(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, other);
  }
  template <typename T>
  void set_all(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, std::span<const T> values) {
    const cudnnStatus_t status =
        cudnn_->set_attribute(descriptor_, attribute, type, static_cast<std::int64_t>(values.size()), values.data());
    if (status != CUDNN_STATUS_SUCCESS) {
      check(status, fmt::format("setting attribute {}", static_cast<int>(attribute)));
    }
  }

  // Writes up to values.size() values and returns how many there are.
  template <typename T>
  std::int64_t read(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type,
                    std::span<T> values) const {
    std::int64_t count = 0;
    const cudnnStatus_t status = cudnn_->get_attribute(descriptor_, attribute, type,
                                                       static_cast<std::int64_t>(values.size()), &count, values.data());
    if (status != CUDNN_STATUS_SUCCESS) {
      check(status, fmt::format("reading attribute {}", static_cast<int>(attribute)));
    }
    return count;
  }

  void finalize() { check(cudnn_->finalize(descriptor_), "finalizing"); }

 private:
  void check(cudnnStatus_t status, std::string_view step) const {
    cudnn_->check(status, ErrorCode::kUnsupported, name_, step);
  }

  const Cudnn* cudnn_;
  std::string name_;
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// Where element (batch, head, row, column) of a tensor lies, in elements.
struct Layout {
  std::array<std::int64_t, 4> sizes{};
  std::array<std::int64_t, 4> strides{};
};

inline Layout dense(std::int64_t batch, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
  return {{batch, heads, rows, columns}, {heads * rows * columns, rows * columns, columns, 1}};
}

inline Layout transposed(Layout layout) {
  std::swap(layout.sizes[2], layout.sizes[3]);
  std::swap(layout.strides[2], layout.strides[3]);
  return layout;
}

// Writes down a computation for cuDNN, operation by operation. Every operation names its result, and gives it back.
class Graph {
 public:
  using Value = cudnnBackendDescriptor_t;

  static constexpr std::int64_t kFirstInside = 100;

  Graph(const Cudnn& cudnn, std::string name) : cudnn_(cudnn), name_(std::move(name)) {}

  // A tensor in device memory. A computation's operands and scalars have numbers below kFirstInside, by which a call
  // gives their addresses.
  Value operand(std::int64_t uid, cudnnDataType_t dtype, const Layout& layout) {
    return tensor({.uid = uid, .dtype = dtype, .layout = layout});
  }
  // An f32 in host memory.
  Value scalar(std::int64_t uid) {
    return tensor({.uid = uid, .dtype = CUDNN_DATA_FLOAT, .layout = dense(1, 1, 1, 1), .is_by_value = true});
  }
  // A tensor that need not exist: a step inside of the kernel.
  Value inside(const Layout& layout, cudnnDataType_t dtype = CUDNN_DATA_FLOAT) {
    return tensor({.uid = next_inside_++, .dtype = dtype, .layout = layout, .is_virtual = true});
  }

  Value matmul(std::string_view step, Value a, Value b, Value product) {
    Descriptor& how = add(CUDNN_BACKEND_MATMUL_DESCRIPTOR, step);
    how.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    how.finalize();
    Descriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR, step);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, product);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, how.get());
    operation.finalize();
    return product;
  }

  Value unary(std::string_view step, cudnnPointwiseMode_t mode, Value x, Value result) {
    return pointwise(step, {.mode = mode}, {.x = x}, result);
  }
  Value binary(std::string_view step, cudnnPointwiseMode_t mode, Value x, Value b, Value result) {
    return pointwise(step, {.mode = mode}, {.x = x, .b = b}, result);
  }
  // Element (b, h, i, j) becomes i (axis 2) or j (axis 3).
  Value index(std::string_view step, std::int64_t axis, Value like, Value result) {
    return pointwise(step, {.mode = CUDNN_POINTWISE_GEN_INDEX, .axis = axis}, {.x = like}, result);
  }
  Value is_at_least(std::string_view step, Value x, Value b, Value result) {
    return pointwise(step, {.mode = CUDNN_POINTWISE_CMP_GE, .precision = CUDNN_DATA_BOOLEAN}, {.x = x, .b = b}, result);
  }
  // x where `condition`, b elsewhere
  Value select(std::string_view step, Value condition, Value x, Value b, Value result) {
    return pointwise(step, {.mode = CUDNN_POINTWISE_BINARY_SELECT}, {.x = x, .b = b, .condition = condition}, result);
  }

  // Over the dimensions in which `result` has size 1, or over the groups of heads that `result` has one of.
  Value reduce(std::string_view step, cudnnReduceTensorOp_t with, Value x, Value result) {
    Descriptor& how = add(CUDNN_BACKEND_REDUCTION_DESCRIPTOR, step);
    how.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
    how.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, with);
    how.finalize();
    Descriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR, step);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, how.get());
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, result);
    operation.finalize();
    return result;
  }

  // The same elements in another layout: how cuDNN writes a transposition.
  Value reshape(std::string_view step, Value x, Value result) {
    Descriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR, step);
    operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, result);
    operation.finalize();
    return result;
  }

  [[nodiscard]] const std::string& name() const { return name_; }

  // The whole; cuDNN has copied what it needs, so that this object may go.
  [[nodiscard]] Descriptor finish(cudnnHandle_t handle) const {
    Descriptor graph(cudnn_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, name_ + ": graph");
    graph.set_all<cudnnBackendDescriptor_t>(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations_);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, handle);
    graph.finalize();
    return graph;
  }

 private:
  struct TensorSpec {
    std::int64_t uid = 0;
    cudnnDataType_t dtype = CUDNN_DATA_FLOAT;
    Layout layout;
    bool is_virtual = false;
    bool is_by_value = false;
  };
  struct Function {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    std::int64_t axis = -1;
  };
  struct Inputs {
    Value x = nullptr;
    Value b = nullptr;
    Value condition = nullptr;
  };

  Value tensor(const TensorSpec& spec) {
    Descriptor& tensor = add(CUDNN_BACKEND_TENSOR_DESCRIPTOR, fmt::format("tensor {}", spec.uid));
    tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, spec.dtype);
    tensor.set_all<std::int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, spec.layout.sizes);
    tensor.set_all<std::int64_t>(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, spec.layout.strides);
    tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, spec.uid);
    tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, std::int64_t{16});
    tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, spec.is_virtual);
    tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, spec.is_by_value);
    tensor.finalize();
    return tensor.get();
  }

  Value pointwise(std::string_view step, const Function& function, const Inputs& inputs, Value result) {
    Descriptor& how = add(CUDNN_BACKEND_POINTWISE_DESCRIPTOR, step);
    how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, function.mode);
    how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, function.precision);
    if (function.axis >= 0) {
      how.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, function.axis);
    }
    how.finalize();
    Descriptor& operation = add_operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, step);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how.get());
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, inputs.x);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, result);
    if (inputs.b != nullptr) {
      operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, inputs.b);
    }
    if (inputs.condition != nullptr) {
      operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, inputs.condition);
    }
    operation.finalize();
    return result;
  }

  // The reference holds until the next add.
  Descriptor& add(cudnnBackendDescriptorType_t type, std::string_view step) {
    return *descriptors_.emplace_back(std::make_unique<Descriptor>(cudnn_, type, fmt::format("{}: {}", name_, step)));
  }
  Descriptor& add_operation(cudnnBackendDescriptorType_t type, std::string_view step) {
    Descriptor& operation = add(type, step);
    operations_.push_back(operation.get());
    return operation;
  }

  const Cudnn& cudnn_;
  std::string name_;
  std::vector<std::unique_ptr<Descriptor>> descriptors_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  std::int64_t next_inside_ = kFirstInside;
};

struct Plan {
  Descriptor plan;
  std::int64_t workspace_bytes = 0;
};

inline bool is_reproducible(const Cudnn& cudnn, const Descriptor& configuration) {
  const Descriptor engine(cudnn, CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine");
  cudnnBackendDescriptor_t raw = engine.get();
  configuration.read(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::span(&raw, 1));
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const std::int64_t count = engine.read(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                         std::span<cudnnBackendNumericalNote_t>(notes));
  return std::find(notes.begin(), notes.begin() + count, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) ==
         notes.begin() + count;
}

// cuDNN's proposals for the graph, best first.
inline std::vector<Descriptor> propose(const Cudnn& cudnn, const Descriptor& graph, cudnnBackendHeurMode_t mode,
                                       const std::string& name) {
  Descriptor heuristics(cudnn, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, name + ": heuristics");
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph.get());
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, mode);
  heuristics.finalize();
  const std::int64_t count = heuristics.read(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                             std::span<cudnnBackendDescriptor_t>());
  std::vector<Descriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < count; ++i) {
    configurations.emplace_back(cudnn, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, name + ": configuration");
    raw.push_back(configurations.back().get());
  }
  const std::int64_t found =
      heuristics.read(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, std::span(raw));
  configurations.erase(configurations.begin() + found, configurations.end());
  return configurations;
}

// What cuDNN may ask for beside the tensors; a plan that wants more is not taken.
inline constexpr std::int64_t kWorkspaceLimitBytes = std::int64_t{4} << 30;

inline Plan make_plan(const Cudnn& cudnn, cudnnHandle_t handle, const Descriptor& configuration,
                      const std::string& name) {
  Plan made{Descriptor(cudnn, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, name + ": plan")};
  if (!is_reproducible(cudnn, configuration)) {
    fail(ErrorCode::kUnsupported, "cudnn: {}: the engine is not reproducible", name);
  }
  made.plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, handle);
  made.plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration.get());
  made.plan.finalize();
  made.plan.read(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, std::span(&made.workspace_bytes, 1));
  if (made.workspace_bytes > kWorkspaceLimitBytes) {
    fail(ErrorCode::kUnsupported, "cudnn: {}: the engine wants {} bytes of workspace", name, made.workspace_bytes);
  }
  return made;
}

// The first of cuDNN's proposals that works: a function of the graph, the GPU and cuDNN's version, without timing.
// Throws Error(kUnsupported) that lists why none does.
inline Plan choose_plan(const Cudnn& cudnn, cudnnHandle_t handle, const Graph& graph) {
  const Descriptor whole = graph.finish(handle);
  std::string reasons;
  const auto add_reason = [&reasons](const Error& error) {
    reasons += reasons.empty() ? "" : "; ";
    reasons += error.what();
  };
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_B, CUDNN_HEUR_MODE_FALLBACK}) {
    std::vector<Descriptor> configurations;
    try {
      configurations = propose(cudnn, whole, mode, graph.name());
    } catch (const Error& error) {
      add_reason(error);
    }
    for (const Descriptor& configuration : configurations) {
      try {
        return make_plan(cudnn, handle, configuration, graph.name());
      } catch (const Error& error) {
        add_reason(error);
      }
    }
  }
  fail(ErrorCode::kUnsupported, "{}", reasons.empty() ? "cudnn: " + graph.name() + ": no engine" : reasons);
}

}  // namespace lockstep::cuda
