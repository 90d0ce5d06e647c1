// The ops' forward passes in double precision, written as plainly as their definitions: what kernels are compared with,
// and what central differences are taken of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "ops/functions.h"
#include "ops/packed.h"

namespace lockstep::test::reference {

using Values = std::vector<double>;

inline std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// y[n, out] = x[n, in] weight + bias (bias may be empty)
inline Values linear(const Values& x, const Values& weight, const Values& bias, std::int64_t in, std::int64_t out,
                     WeightLayout layout) {
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / in;
  Values y(index(rows * out));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : bias[index(o)];
      for (std::int64_t i = 0; i < in; ++i) {
        sum += x[index(r * in + i)] * weight[index(layout == WeightLayout::kInOut ? i * out + o : o * in + i)];
      }
      y[index(r * out + o)] = sum;
    }
  }
  return y;
}

// bias may be empty
inline Values norm(NormKind kind, const Values& x, const Values& gain, const Values& bias, double epsilon = 1e-5) {
  const std::size_t columns = gain.size();
  Values y(x.size());
  for (std::size_t first = 0; first < x.size(); first += columns) {
    double mean = 0;
    for (std::size_t i = 0; i < columns && kind == NormKind::kLayer; ++i) {
      mean += x[first + i] / static_cast<double>(columns);
    }
    double square = 0;
    for (std::size_t i = 0; i < columns; ++i) {
      square += (x[first + i] - mean) * (x[first + i] - mean) / static_cast<double>(columns);
    }
    for (std::size_t i = 0; i < columns; ++i) {
      y[first + i] = (x[first + i] - mean) / std::sqrt(square + epsilon) * gain[i] + (bias.empty() ? 0 : bias[i]);
    }
  }
  return y;
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

inline Values gelu(const Values& x) {
  Values y;
  for (const double v : x) {
    y.push_back(0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))));
  }
  return y;
}

inline Values swiglu(const Values& gate_up, std::size_t width) {
  Values y;
  for (std::size_t first = 0; first < gate_up.size(); first += 2 * width) {
    for (std::size_t i = 0; i < width; ++i) {
      const double gate = gate_up[first + i];
      y.push_back(gate * sigmoid(gate) * gate_up[first + width + i]);
    }
  }
  return y;
}

inline Values add(const Values& a, const Values& b) {
  Values y(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    y[i] = a[i] + b[i];
  }
  return y;
}

// What dropout multiplies element i by, from the scalar random numbers.
inline double dropout_factor(const Dropout& dropout, std::uint64_t i) {
  if (dropout.probability == 0) {
    return 1;
  }
  const bool keep = uniform_float(philox(dropout.key, i / 4)[i % 4]) >= dropout.probability;
  return keep ? 1 / (1 - static_cast<double>(dropout.probability)) : 0;
}

// What packed bytes stand for.
inline Values unpacked(Packing packing, std::span<const std::byte> bytes, std::size_t count) {
  Values values(count);
  const auto* const codes = bytes.data() + codes_offset(packing, count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::byte* const at = bytes.data() + i / values_in_block(packing) * scale_bytes(packing);
    float scale = 0;
    float level = 0;
    if (packing == Packing::kQ8) {
      std::uint16_t half = 0;
      std::memcpy(&half, at, sizeof(half));
      scale = from_f16(half);
      level = static_cast<float>(static_cast<std::int8_t>(codes[i]));
    } else {
      std::memcpy(&scale, at, sizeof(scale));
      const auto byte = static_cast<std::uint8_t>(codes[i / 2]);
      level = kNf4Levels[i % 2 == 0 ? byte & 15 : byte >> 4];
    }
    values[i] = static_cast<double>(scale * level);
  }
  return values;
}

inline Values drop(const Dropout& dropout, const Values& x) {
  Values y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    y[i] = x[i] * dropout_factor(dropout, i);
  }
  return y;
}

// positions may be empty
inline Values embedding(std::span<const std::int32_t> tokens, const Values& table, const Values& positions,
                        std::int64_t columns, std::int64_t sequence, std::int64_t first_position) {
  Values x;
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    for (std::int64_t c = 0; c < columns; ++c) {
      double value = table[index(tokens[row] * columns + c)];
      if (!positions.empty()) {
        value += positions[index((first_position + static_cast<std::int64_t>(row) % sequence) * columns + c)];
      }
      x.push_back(value);
    }
  }
  return x;
}

struct AttentionSizes {
  std::int64_t batch, tokens, heads, kv_heads, head_dim;
};

inline Values attention(const Values& qkv, const AttentionSizes& s, const Dropout& dropout = {}) {
  const std::int64_t width = (s.heads + 2 * s.kv_heads) * s.head_dim;
  const auto at = [&](std::int64_t b, std::int64_t t, std::int64_t head, std::int64_t i) {
    return qkv[index((b * s.tokens + t) * width + head * s.head_dim + i)];
  };
  Values out(index(s.batch * s.tokens * s.heads * s.head_dim));
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      const std::int64_t key_head = s.heads + h * s.kv_heads / s.heads;
      for (std::int64_t t = 0; t < s.tokens; ++t) {
        Values p;
        double sum = 0;
        for (std::int64_t u = 0; u <= t; ++u) {
          double score = 0;
          for (std::int64_t i = 0; i < s.head_dim; ++i) {
            score += at(b, t, h, i) * at(b, u, key_head, i);
          }
          p.push_back(std::exp(score / std::sqrt(static_cast<double>(s.head_dim))));
          sum += p.back();
        }
        for (std::int64_t u = 0; u <= t; ++u) {
          const std::int64_t element = ((b * s.heads + h) * s.tokens + t) * s.tokens + u;
          const double weight = p[index(u)] / sum * dropout_factor(dropout, static_cast<std::uint64_t>(element));
          for (std::int64_t i = 0; i < s.head_dim; ++i) {
            out[index(((b * s.tokens + t) * s.heads + h) * s.head_dim + i)] +=
                weight * at(b, u, key_head + s.kv_heads, i);
          }
        }
      }
    }
  }
  return out;
}

// The gradient of attention(qkv) . dout with respect to qkv, by the formulas of ops/attention.cpp: for sequences that
// central differences would take too long for.
inline Values attention_gradient(const Values& qkv, const Values& dout, const AttentionSizes& s,
                                 const Dropout& dropout = {}) {
  const std::int64_t width = (s.heads + 2 * s.kv_heads) * s.head_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(s.head_dim));
  Values dqkv(qkv.size());
  const auto dot = [&](const double* a, const double* b) {
    double sum = 0;
    for (std::int64_t i = 0; i < s.head_dim; ++i) {
      sum += a[i] * b[i];
    }
    return sum;
  };
  const auto add_to = [&](double* sum, double factor, const double* x) {
    for (std::int64_t i = 0; i < s.head_dim; ++i) {
      sum[i] += factor * x[i];
    }
  };
  for (std::int64_t row = 0; row < s.batch * s.heads * s.tokens; ++row) {
    const std::int64_t b = row / (s.heads * s.tokens);
    const std::int64_t h = row / s.tokens % s.heads;
    const std::int64_t t = row % s.tokens;
    const auto place = [&](std::int64_t token, std::int64_t head) {
      return index((b * s.tokens + token) * width + head * s.head_dim);
    };
    const std::int64_t k = s.heads + h * s.kv_heads / s.heads;
    const std::int64_t v = k + s.kv_heads;
    const double* q = &qkv[place(t, h)];
    const double* dy = &dout[index(((b * s.tokens + t) * s.heads + h) * s.head_dim)];
    Values p;
    Values dp;
    Values factor;
    double sum = 0;
    for (std::int64_t u = 0; u <= t; ++u) {
      p.push_back(std::exp(scale * dot(q, &qkv[place(u, k)])));
      sum += p.back();
      factor.push_back(dropout_factor(dropout, static_cast<std::uint64_t>(row * s.tokens + u)));
      dp.push_back(factor.back() * dot(dy, &qkv[place(u, v)]));
    }
    double delta = 0;
    for (std::int64_t u = 0; u <= t; ++u) {
      p[index(u)] /= sum;
      delta += p[index(u)] * dp[index(u)];
    }
    for (std::int64_t u = 0; u <= t; ++u) {
      const double ds = scale * p[index(u)] * (dp[index(u)] - delta);
      add_to(&dqkv[place(t, h)], ds, &qkv[place(u, k)]);
      add_to(&dqkv[place(u, k)], ds, q);
      add_to(&dqkv[place(u, v)], p[index(u)] * factor[index(u)], dy);
    }
  }
  return dqkv;
}

struct RopeSizes {
  std::int64_t width, heads, head_dim, sequence, first_position;
};

inline Values rope(Values x, const RopeSizes& s, const Values& frequency) {
  const std::int64_t half = s.head_dim / 2;
  for (std::int64_t row = 0; row < static_cast<std::int64_t>(x.size()) / s.width; ++row) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      for (std::int64_t i = 0; i < half; ++i) {
        double& a = x[index(row * s.width + h * s.head_dim + i)];
        double& b = x[index(row * s.width + h * s.head_dim + half + i)];
        // The angle is an f32 product by definition.
        const double angle =
            static_cast<float>(s.first_position + row % s.sequence) * static_cast<float>(frequency[index(i)]);
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = b * std::cos(angle) + a * std::sin(angle);
        a = turned;
      }
    }
  }
  return x;
}

// -log softmax(logits[r])[target r] for each row; 0 for rows with target -1.
inline Values cross_entropy(const Values& logits, std::span<const std::int32_t> targets) {
  const std::size_t columns = logits.size() / targets.size();
  Values losses;
  for (std::size_t r = 0; r < targets.size(); ++r) {
    const std::span<const double> row(logits.data() + r * columns, columns);
    const double largest = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const double logit : row) {
      sum += std::exp(logit - largest);
    }
    losses.push_back(targets[r] < 0 ? 0 : largest + std::log(sum) - row[static_cast<std::size_t>(targets[r])]);
  }
  return losses;
}

struct LossGradients {
  Values dx;       // [rows, in]
  Values dweight;  // in the weight's layout
};
// Gradients of scale * the sum of cross_entropy(linear(x, weight), targets), row by row: for vocabularies that central
// differences would take too long for.
inline LossGradients loss_gradients(const Values& x, const Values& weight, std::span<const std::int32_t> targets,
                                    std::int64_t in, WeightLayout layout, double scale) {
  const std::int64_t out = static_cast<std::int64_t>(weight.size()) / in;
  const auto place = [&](std::int64_t i, std::int64_t o) {
    return index(layout == WeightLayout::kInOut ? i * out + o : o * in + i);
  };
  LossGradients gradients{Values(x.size()), Values(weight.size())};
  for (std::size_t r = 0; r < targets.size(); ++r) {
    const auto first = static_cast<std::ptrdiff_t>(r) * in;
    const Values logits = linear(Values(x.begin() + first, x.begin() + first + in), weight, {}, in, out, layout);
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double logit : logits) {
      sum += std::exp(logit - largest);
    }
    for (std::int64_t o = 0; o < out && targets[r] >= 0; ++o) {
      const double probability = std::exp(logits[index(o)] - largest) / sum;
      const double dlogit = scale * (probability - (o == targets[r] ? 1 : 0));
      for (std::int64_t i = 0; i < in; ++i) {
        gradients.dx[index(first + i)] += dlogit * weight[place(i, o)];
        gradients.dweight[place(i, o)] += dlogit * x[index(first + i)];
      }
    }
  }
  return gradients;
}

// Gradients of the sum of weights * function(inputs) with respect to every input, by central differences.
inline std::vector<Values> gradients(const std::function<Values(const std::vector<Values>&)>& function,
                                     std::vector<Values> inputs, const Values& weights) {
  const auto weighted = [&] {
    double sum = 0;
    const Values y = function(inputs);
    for (std::size_t i = 0; i < y.size(); ++i) {
      sum += y[i] * weights[i];
    }
    return sum;
  };
  constexpr double kStep = 1e-5;
  std::vector<Values> result;
  for (Values& input : inputs) {
    Values& gradient = result.emplace_back();
    for (double& value : input) {
      const double at = value;
      value = at + kStep;
      const double above = weighted();
      value = at - kStep;
      const double below = weighted();
      value = at;
      gradient.push_back((above - below) / (2 * kStep));
    }
  }
  return result;
}

}  // namespace lockstep::test::reference
