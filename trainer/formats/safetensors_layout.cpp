#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"
#include "trainer/flat_parameters.h"
#include "trainer/formats/safetensors.h"
#include "trainer/formats/strict_json.h"

namespace lockstep {

SafetensorsLayout::SafetensorsLayout(std::vector<SafetensorsTensor> tensors_in_order,
                                     const std::map<std::string, std::string>& metadata)
    : tensors(std::move(tensors_in_order)) {
  nlohmann::ordered_json root = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    root["__metadata__"] = metadata;
  }
  std::unordered_set<std::string> names = {"__metadata__"};
  // An ordered_json object is a list, so that looking a key up before each insertion would take quadratic time.
  auto& members = root.get_ref<nlohmann::ordered_json::object_t&>();
  for (SafetensorsTensor& tensor : tensors) {
    const auto count = count_of(tensor.shape);
    require(count && *count <= (~std::uint64_t{0} >> 8), "safetensors: tensor {} has the impossible shape {}",
            quoted_name(tensor.name), shape_text(tensor.shape));
    require(names.insert(tensor.name).second, "safetensors: tensor {} stands twice", quoted_name(tensor.name));
    require(bits_of(tensor.type) % 8 == 0, "safetensors: tensor {} of {}, which is not written",
            quoted_name(tensor.name), name_of(tensor.type));
    require(data_bytes % size_of(tensor.type) == 0,
            "safetensors: tensor {} of {} would begin at byte {}: order wide types before narrow ones",
            quoted_name(tensor.name), name_of(tensor.type), data_bytes);
    tensor.begin = data_bytes;
    tensor.end = data_bytes + *count * size_of(tensor.type);
    data_bytes = tensor.end;
    members.emplace_back(tensor.name, nlohmann::ordered_json{{"dtype", std::string(name_of(tensor.type))},
                                                             {"shape", tensor.shape},
                                                             {"data_offsets", {tensor.begin, tensor.end}}});
  }
  std::string json = root.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  require(json.size() <= kMaxSafetensorsHeaderBytes, "safetensors: {} tensors make a header of {} bytes, at most {}",
          tensors.size(), json.size(), kMaxSafetensorsHeaderBytes);
  const auto json_bytes = static_cast<std::uint64_t>(json.size());
  head.assign(reinterpret_cast<const char*>(&json_bytes), sizeof(json_bytes));
  head += json;
}

}  // namespace lockstep
