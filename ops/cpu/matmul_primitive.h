// The one difference between oneDNN 2 and 3 that we meet: how a matmul primitive is described. CMake picks the file.
#pragma once

#include <oneapi/dnnl/dnnl.hpp>

namespace lockstep::cpu {

struct MatmulDescription {
  dnnl::memory::desc a;
  dnnl::memory::desc b;
  dnnl::memory::desc bias;  // zero when there is none
  dnnl::memory::desc d;
  dnnl::primitive_attr attributes;
};

[[nodiscard]] dnnl::matmul::primitive_desc describe_matmul(const MatmulDescription& matmul, const dnnl::engine& engine);

}  // namespace lockstep::cpu
