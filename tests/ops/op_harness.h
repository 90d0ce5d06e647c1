// What the tests of ops share: a tape with inputs and parameters whose gradients can be looked at, and comparison of
// numbers.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "base/cuda/devices.h"
#include "ops/backend.h"
#include "ops/cpu/dispatch.h"
#include "ops/functions.h"

namespace lockstep::test {

using Values = std::vector<double>;

// What every test of an op runs on.
struct Platform {
  DeviceKind device = DeviceKind::kCpu;
  DType dtype = DType::kF32;
};
inline std::ostream& operator<<(std::ostream& stream, const Platform& platform) {
  return stream << (platform.device == DeviceKind::kCpu ? "cpu_" : "cuda_") << name_of(platform.dtype);
}
inline std::vector<Platform> cpu_platforms() {
  return {{DeviceKind::kCpu, DType::kF32}, {DeviceKind::kCpu, DType::kBF16}, {DeviceKind::kCpu, DType::kF16}};
}
inline bool has_gpu() {
  const cuda::DeviceList list = cuda::list_devices();
  return !list.devices.empty() && list.devices.front().problem.empty();
}
// Of a GPU that can be used.
inline bool gpu_has_bf16() { return cuda::list_devices().devices.front().major >= 8; }
// The CPU, and the first GPU where there is one that can be used, in what it has.
inline std::vector<Platform> all_platforms() {
  std::vector<Platform> platforms = cpu_platforms();
  if (has_gpu()) {
    platforms.push_back({DeviceKind::kCuda, DType::kF32});
    if (gpu_has_bf16()) {
      platforms.push_back({DeviceKind::kCuda, DType::kBF16});
    }
    platforms.push_back({DeviceKind::kCuda, DType::kF16});
  }
  return platforms;
}
inline std::string name_of_platform(const testing::TestParamInfo<Platform>& info) {
  return testing::PrintToString(info.param);
}

// One GPU backend serves the whole process.
inline std::shared_ptr<Backend> backend_of(DeviceKind device, int threads) {
  if (device == DeviceKind::kCpu) {
    return make_cpu_backend(threads);
  }
  static const std::shared_ptr<Backend> gpu = make_cuda_backend(0, threads);
  return gpu;
}

// The elements of a tensor or a vector, wherever it lies.
template <typename T>
std::vector<T> elements_of(const BufferView& view) {
  std::vector<T> elements(view.count);
  backend_of(view.device.kind, 1)->copy(view, view_of(std::span(elements)));
  return elements;
}
template <typename T>
void set_elements(const BufferView& view, const std::vector<T>& elements) {
  backend_of(view.device.kind, 1)->copy({const_cast<T*>(elements.data()), elements.size(), view.dtype, {}}, view);
}

// `value`, as a working dtype holds it.
inline double rounded(double value, DType dtype) {
  double held = 0;
  cpu::with_working_type(dtype, [&](auto type) {
    held = static_cast<double>(static_cast<float>(decltype(type)(static_cast<float>(value))));
  });
  return held;
}

inline Values to_values(const Tensor& tensor) {
  Values values;
  cpu::with_working_type(tensor.dtype(), [&](auto type) {
    for (const auto element : elements_of<decltype(type)>(tensor.buffer())) {
      values.push_back(static_cast<double>(static_cast<float>(element)));
    }
  });
  return values;
}

inline void fill(const Tensor& tensor, const Values& values) {
  ASSERT_EQ(static_cast<std::size_t>(tensor.count()), values.size());
  cpu::with_working_type(tensor.dtype(), [&](auto type) {
    using T = decltype(type);
    std::vector<T> elements;
    for (const double value : values) {
      elements.push_back(T(static_cast<float>(value)));
    }
    set_elements(tensor.buffer(), elements);
  });
}

// The same numbers each time: multiples of 1/64 in [-1, 1], which bf16 holds exactly.
class RandomValues {
 public:
  explicit RandomValues(std::uint32_t seed) : engine_(seed) {}
  [[nodiscard]] Values operator()(std::int64_t count) {
    Values values(static_cast<std::size_t>(count));
    for (double& value : values) {
      value = (static_cast<double>(engine_() % 129) - 64.0) / 64.0;
    }
    return values;
  }

 private:
  std::mt19937 engine_;
};

// Whether each number is within `tolerance` times the largest expected magnitude of what was expected.
inline testing::AssertionResult near(const Values& actual, const Values& expected, double tolerance) {
  if (actual.size() != expected.size()) {
    return testing::AssertionFailure() << actual.size() << " values, expected " << expected.size();
  }
  double largest = 0;
  for (const double value : expected) {
    largest = std::max(largest, std::abs(value));
  }
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double error = std::abs(actual[i] - expected[i]);
    if (!(error <= tolerance * largest + 1e-30)) {
      return testing::AssertionFailure() << "element " << i << " is " << actual[i] << ", expected " << expected[i]
                                         << "; the error is " << error / largest << " of the largest element, allowed "
                                         << tolerance;
    }
  }
  return testing::AssertionSuccess();
}

// A device, an arena and a recording tape.
class Graph : private GradientSink {
 public:
  explicit Graph(const Platform& platform, int threads = 2)
      : platform_(platform),
        backend_(backend_of(platform.device, threads)),
        arena_([this](std::size_t size_bytes) { return backend_->allocate(size_bytes); }),
        tape_(*backend_, arena_, this) {}

  [[nodiscard]] Tape& tape() { return tape_; }
  [[nodiscard]] Backend& backend() { return *backend_; }
  [[nodiscard]] Arena& arena() { return arena_; }

  // A tensor without a gradient.
  [[nodiscard]] Tensor constant(const Shape& shape, const Values& values, DType dtype) {
    Tensor tensor = tape_.make(shape, dtype);
    fill(tensor, values);
    return tensor;
  }
  // f32 on the host, as rotary frequencies are.
  [[nodiscard]] Tensor on_host(const Shape& shape, const Values& values) {
    std::vector<float>& elements = host_.emplace_back(values.begin(), values.end());
    return {elements.data(), shape, DType::kF32};
  }
  // A parameter in the working dtype; its gradient is gradient_of(parameter).
  [[nodiscard]] Tensor parameter(const Shape& shape, const Values& values) {
    Tensor tensor = constant(shape, values, platform_.dtype);
    tensor.parameter = static_cast<int>(parameters_.size());
    parameters_.push_back(constant(shape, Values(values.size(), std::nan("")), DType::kF32));
    return tensor;
  }
  // An activation in the working dtype; its gradient is input_gradient(i) for the i-th input after backward().
  [[nodiscard]] Tensor input(const Shape& shape, const Values& values) {
    const Tensor tensor = tape_.make_variable(shape, platform_.dtype);
    fill(tensor, values);
    Values* gradient = &input_gradients_.emplace_back();
    tape_.record(tensor, {}, [tensor, gradient](Gradients& gradients) {
      const Tensor dx = gradients.take(tensor);
      if (dx.is_defined()) {
        *gradient = to_values(dx);
      }
    });
    return tensor;
  }

  struct Output {
    Tensor y;
    Values dy;
  };
  // Gradients of the sum over the outputs of y * dy.
  void backward(const std::vector<Output>& outputs) {
    const Tensor loss = tape_.make_variable({1}, DType::kF32);
    tape_.record(loss, {}, [this, loss, outputs](Gradients& gradients) {
      ASSERT_TRUE(gradients.take(loss).is_defined());
      for (const Output& output : outputs) {
        gradients.add(output.y, constant(output.y.shape(), output.dy, output.y.dtype()));
      }
    });
    tape_.backward(loss);
  }

  [[nodiscard]] const Values& input_gradient(std::size_t i) const { return input_gradients_.at(i); }
  [[nodiscard]] Values gradient_of(const Tensor& parameter) const {
    return to_values(parameters_.at(static_cast<std::size_t>(parameter.parameter)));
  }
  // The parameters whose gradients were announced as final, in that order.
  [[nodiscard]] const std::vector<int>& ready() const { return ready_; }

 private:
  [[nodiscard]] Tensor gradient_of(int parameter) override { return parameters_[static_cast<std::size_t>(parameter)]; }
  void gradient_ready(int parameter) override { ready_.push_back(parameter); }

  Platform platform_;
  std::shared_ptr<Backend> backend_;
  Arena arena_;
  std::deque<std::vector<float>> host_;
  std::vector<Tensor> parameters_;      // their gradients
  std::deque<Values> input_gradients_;  // never moves
  std::vector<int> ready_;
  Tape tape_;
};

// What an op's result and gradients may be off by, relative to the largest element: the rounding of f32 sums, or of
// operands and results of the dtype. Gradients that are sums over many roundings to bf16 or f16 need `steps` of them.
inline double tolerance_of(DType dtype, double steps = 1) {
  return steps * (dtype == DType::kF32 ? 3e-6 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-11);
}

class OpTest : public testing::TestWithParam<Platform> {
 protected:
  [[nodiscard]] static DType dtype() { return GetParam().dtype; }
  [[nodiscard]] static double tolerance(double steps = 1) { return tolerance_of(dtype(), steps); }
  // Of a loss, relative: logits are f32, but for a GPU's in bf16 and f16.
  [[nodiscard]] static double loss_tolerance() {
    return GetParam().device == DeviceKind::kCpu || dtype() == DType::kF32 ? 1e-6 : tolerance(0.5);
  }
};

}  // namespace lockstep::test
