#include "ops/cpu/matmul_primitive.h"

namespace lockstep::cpu {

dnnl::matmul::primitive_desc describe_matmul(const MatmulDescription& matmul, const dnnl::engine& engine) {
  if (matmul.bias.is_zero()) {
    return {engine, matmul.a, matmul.b, matmul.d, matmul.attributes};
  }
  return {engine, matmul.a, matmul.b, matmul.bias, matmul.d, matmul.attributes};
}

}  // namespace lockstep::cpu
