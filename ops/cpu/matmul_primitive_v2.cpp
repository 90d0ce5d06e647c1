#include "ops/cpu/matmul_primitive.h"

namespace lockstep::cpu {

dnnl::matmul::primitive_desc describe_matmul(const MatmulDescription& matmul, const dnnl::engine& engine) {
  const bool with_bias = matmul.bias.data.ndims != 0;
  const auto description = with_bias ? dnnl::matmul::desc(matmul.a, matmul.b, matmul.bias, matmul.d)
                                     : dnnl::matmul::desc(matmul.a, matmul.b, matmul.d);
  return {description, matmul.attributes, engine};
}

}  // namespace lockstep::cpu
