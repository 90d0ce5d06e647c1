// What the fuzzers of safetensors and manifest.json do with one input; the unit tests do the same with their corpora.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/error.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/formats/safetensors.h"

namespace lockstep {

inline void check(bool condition) {
  if (!condition) {
    std::abort();
  }
}

// `file`: a whole safetensors file. Whatever is accepted covers the data exactly.
inline void try_safetensors(std::string_view file) {
  std::uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) {
    return;
  }
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  file.remove_prefix(sizeof(header_bytes));
  // A wrong length is the caller's to find; here it only decides where the JSON ends.
  const std::string_view json = file.substr(0, header_bytes % (file.size() + 1));
  try {
    const SafetensorsHeader header = parse_safetensors_header(json, file.size() - json.size(), "fuzz");
    std::uint64_t position = 0;
    for (const SafetensorsTensor& tensor : header.tensors) {
      check(tensor.begin == position && tensor.end >= tensor.begin);
      check(tensor.count() * bits_of(tensor.type) == (tensor.end - tensor.begin) * 8);
      position = tensor.end;
    }
    check(position == file.size() - json.size());
  } catch (const Error& error) {
    check(std::string_view(error.what()).find('\n') == std::string_view::npos);
  }
}

// `body`: a manifest without the line that seals it. Whatever is accepted is written and read back the same.
inline void try_manifest(std::string_view body) {
  try {
    const Manifest manifest = parse_manifest(seal_manifest(body), "fuzz");
    const std::string text = manifest_text(manifest);
    check(manifest_text(parse_manifest(text, "fuzz")) == text);
    check(manifest.shards.empty() || manifest.shards.back().range.end == manifest.layout.total());
  } catch (const Error& error) {
    check(std::string_view(error.what()).find('\n') == std::string_view::npos);
  }
}

}  // namespace lockstep
