#include "trainer/gguf_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace lockstep {
namespace {

std::string gguf_name(const std::string& hf_name) {
  static const std::array<std::pair<std::string_view, std::string_view>, 23> kNames = {{
      {"transformer.wte.", "token_embd."},
      {"transformer.wpe.", "position_embd."},
      {"transformer.ln_f.", "output_norm."},
      {"ln_1.", "attn_norm."},
      {"attn.c_attn.", "attn_qkv."},
      {"attn.c_proj.", "attn_output."},
      {"ln_2.", "ffn_norm."},
      {"mlp.c_fc.", "ffn_up."},
      {"mlp.c_proj.", "ffn_down."},
      {"model.embed_tokens.", "token_embd."},
      {"model.norm.", "output_norm."},
      {"lm_head.", "output."},
      {"input_layernorm.", "attn_norm."},
      {"self_attn.q_proj.", "attn_q."},
      {"self_attn.k_proj.", "attn_k."},
      {"self_attn.v_proj.", "attn_v."},
      {"self_attn.o_proj.", "attn_output."},
      {"self_attn.q_norm.", "attn_q_norm."},
      {"self_attn.k_norm.", "attn_k_norm."},
      {"post_attention_layernorm.", "ffn_norm."},
      {"mlp.gate_proj.", "ffn_gate."},
      {"mlp.up_proj.", "ffn_up."},
      {"mlp.down_proj.", "ffn_down."},
  }};
  std::string_view rest = hf_name;
  std::string prefix;
  for (const std::string_view blocks : {"transformer.h.", "model.layers."}) {
    if (rest.starts_with(blocks)) {
      rest.remove_prefix(blocks.size());
      const std::size_t dot = rest.find('.');
      prefix = fmt::format("blk.{}.", rest.substr(0, dot));
      rest.remove_prefix(dot + 1);
    }
  }
  for (const auto& [from, to] : kNames) {
    if (rest.starts_with(from)) {
      return fmt::format("{}{}{}", prefix, to, rest.substr(from.size()));
    }
  }
  fail(ErrorCode::kUnsupported, "export: tensor {} has no place in a GGUF file", hf_name);
}

// Whether llama.cpp takes the family's rotary pairs side by side.
bool has_pairs_side_by_side(const Architecture& a) {
  return a.family == ModelFamily::kLlama || a.family == ModelFamily::kMistral;
}

// Calls move(row in GGUF's order, row in ours) for all of a tensor's rows, which are not transposed.
template <typename Move>
void for_each_row(const GgufPlace& place, std::size_t rows, const Move& move) {
  const std::size_t head = place.order == GgufOrder::kPairs ? rows / static_cast<std::size_t>(place.heads) : 0;
  for (std::size_t r = 0; r < rows; ++r) {
    // Row 2 i + j of a head is row i + j * head / 2 of ours.
    move(r, head == 0 ? r : r / head * head + r % head / 2 + r % 2 * (head / 2));
  }
}

// to[c, r] = from[r, c]
void transpose(std::size_t rows, std::size_t columns, std::span<const float> from, std::span<float> to) {
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns; ++c) {
      to[c * rows + r] = from[r * columns + c];
    }
  }
}

void copy_row(std::span<const float> from, std::size_t from_row, std::span<float> to, std::size_t to_row,
              std::size_t columns) {
  std::ranges::copy(from.subspan(from_row * columns, columns),
                    to.begin() + static_cast<std::ptrdiff_t>(to_row * columns));
}

}  // namespace

GgufPlace gguf_place_of(const Architecture& a, const std::string& hf_name, std::vector<std::int64_t> shape) {
  GgufPlace place{gguf_name(hf_name), std::move(shape), GgufOrder::kAsIs, 0};
  if (a.is_gpt2() && place.shape.size() == 2 && place.name.starts_with("blk.")) {
    place.order = GgufOrder::kTransposed;
    std::swap(place.shape[0], place.shape[1]);
  }
  const bool is_query = place.name.find("attn_q.") != std::string::npos;
  if (has_pairs_side_by_side(a) && (is_query || place.name.find("attn_k.") != std::string::npos)) {
    place.order = GgufOrder::kPairs;
    place.heads = is_query ? a.heads : a.kv_heads;
  }
  return place;
}

void to_gguf_order(const GgufPlace& place, std::span<const float> values, std::span<float> ordered) {
  assert(values.size() == ordered.size());
  const auto columns = static_cast<std::size_t>(place.shape.back());
  const std::size_t rows = values.size() / columns;
  if (place.order == GgufOrder::kTransposed) {
    transpose(columns, rows, values, ordered);
    return;
  }
  for_each_row(place, rows,
               [&](std::size_t gguf, std::size_t ours) { copy_row(values, ours, ordered, gguf, columns); });
}

void from_gguf_order(const GgufPlace& place, std::span<const float> ordered, std::span<float> values) {
  assert(values.size() == ordered.size());
  const auto columns = static_cast<std::size_t>(place.shape.back());
  const std::size_t rows = values.size() / columns;
  if (place.order == GgufOrder::kTransposed) {
    transpose(rows, columns, ordered, values);
    return;
  }
  for_each_row(place, rows,
               [&](std::size_t gguf, std::size_t ours) { copy_row(ordered, gguf, values, ours, columns); });
}

std::vector<float> rope_factors_of(const Architecture& a) {
  Architecture plain = a;
  plain.rope_scaling = RopeScaling::kNone;
  plain.rope_factors.clear();
  const std::vector<float> before = inverse_frequencies(plain);
  const std::vector<float> after = inverse_frequencies(a);
  std::vector<float> factors;
  for (std::size_t i = 0; i < before.size(); ++i) {
    factors.push_back(before[i] / after[i]);
  }
  return factors;
}

}  // namespace lockstep
