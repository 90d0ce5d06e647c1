#include "trainer/checkpoint/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "trainer/formats/strict_json.h"

namespace lockstep {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kFormat = "lockstep checkpoint";
constexpr std::string_view kSealBegin = "\"checksum\": \"";
constexpr std::string_view kSealEnd = "\"\n}\n";
constexpr std::size_t kHexDigits = 32;
constexpr std::size_t kSealBytes = kSealBegin.size() + kHexDigits + kSealEnd.size();

std::string dump(const ordered_json& value) {
  // A configuration may name files whose names are not UTF-8.
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

void append_member(std::string& text, const char* key, const ordered_json& value) {
  text += fmt::format("\"{}\": {},\n", key, dump(value));
}

// One element a line: manifests are read by people, too.
void append_list(std::string& text, const char* key, const std::vector<ordered_json>& values) {
  text += fmt::format("\"{}\": [", key);
  const char* separator = "\n  ";
  for (const ordered_json& value : values) {
    text += separator + dump(value);
    separator = ",\n  ";
  }
  text += "\n],\n";
}

ordered_json parameter_json(const ParameterLayout& layout, std::size_t index) {
  const ParameterSpec& spec = layout.specs()[index];
  ordered_json tensors = ordered_json::array();
  for (const ParameterExport& part : spec.exports) {
    tensors.push_back({{"name", part.hf_name}, {"shape", part.shape}, {"offset", part.offset_elements}});
  }
  return {{"name", spec.name},
          {"shape", spec.shape},
          {"offset", layout.offset(index)},
          {"decay", spec.decay},
          {"tensors", std::move(tensors)}};
}

// Reads members of one JSON object; every complaint names the file and the key.
class Members {
 public:
  Members(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) {
      fail(ErrorCode::kCorrupt, "{}: expected a JSON object", where_);
    }
  }

  [[nodiscard]] const json& get(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) {
      fail(ErrorCode::kCorrupt, "{}: \"{}\" is missing", where_, key);
    }
    return *found;
  }
  [[nodiscard]] std::uint64_t integer(const char* key) const {
    const json& value = get(key);
    check(value.is_number_unsigned(), key, "a non-negative integer");
    return value.get<std::uint64_t>();
  }
  [[nodiscard]] std::string text(const char* key) const {
    const json& value = get(key);
    check(value.is_string(), key, "a string");
    return value.get<std::string>();
  }
  [[nodiscard]] bool flag(const char* key) const {
    const json& value = get(key);
    check(value.is_boolean(), key, "true or false");
    return value.get<bool>();
  }
  [[nodiscard]] const json& list(const char* key) const {
    const json& value = get(key);
    check(value.is_array(), key, "a list");
    return value;
  }
  [[nodiscard]] Hash128 hash(const char* key) const {
    const std::string digits = text(key);
    Hash128 hash;
    check(digits.size() == kHexDigits && parse_hex(digits.substr(0, 16), hash.high) &&
              parse_hex(digits.substr(16), hash.low) && hash.hex() == digits,
          key, "32 lower-case hexadecimal digits");
    return hash;
  }
  // A plain name: nothing outside the folder can be meant.
  [[nodiscard]] std::string file_name(const char* key) const {
    std::string name = text(key);
    check(!name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
              name.find('\0') == std::string::npos,
          key, "the name of a file");
    return name;
  }
  [[nodiscard]] std::vector<std::int64_t> shape(const char* key) const {
    std::vector<std::int64_t> shape;
    for (const json& dim : list(key)) {
      check(dim.is_number_unsigned() && dim.get<std::uint64_t>() <= (~std::uint64_t{0} >> 1), key, "a list of sizes");
      shape.push_back(static_cast<std::int64_t>(dim.get<std::uint64_t>()));
    }
    return shape;
  }
  void check(bool condition, const char* key, const char* expected) const {
    if (!condition) {
      fail(ErrorCode::kCorrupt, "{}: \"{}\" is not {}", where_, key, expected);
    }
  }

 private:
  static bool parse_hex(const std::string& digits, std::uint64_t& value) {
    const char* end = digits.data() + digits.size();
    return std::from_chars(digits.data(), end, value, 16).ptr == end;
  }

  const json& object_;
  std::string where_;
};

RunPosition parse_position(const Members& root) {
  RunPosition position;
  position.step = root.integer("step");
  position.samples = root.integer("samples");
  position.tokens = root.integer("tokens");
  position.seed = root.integer("seed");
  const json& loss = root.get("validation_loss");
  root.check(loss.is_null() || loss.is_number(), "validation_loss", "a number or null");
  if (loss.is_number()) {
    position.validation_loss = loss.get<double>();
  }
  position.config_text = root.text("config");
  root.check(root.get("extra").is_object(), "extra", "an object");
  position.extra_json = root.get("extra").dump();
  return position;
}

ParameterLayout parse_layout(const Members& root, const std::string& file) {
  std::vector<ParameterSpec> specs;
  std::vector<std::uint64_t> offsets;
  for (const json& entry : root.list("parameters")) {
    const Members members(entry, file + ": \"parameters\"");
    ParameterSpec spec{members.text("name"), members.shape("shape"), members.flag("decay"), {}};
    for (const json& tensor : members.list("tensors")) {
      const Members part(tensor, fmt::format("{}: parameter {}", file, quoted_name(spec.name)));
      const std::uint64_t offset = part.integer("offset");
      part.check(offset <= (~std::uint64_t{0} >> 1), "offset", "a position in the parameter");
      spec.exports.push_back({part.text("name"), part.shape("shape"), static_cast<std::int64_t>(offset)});
    }
    members.check(!spec.exports.empty(), "tensors", "a list of at least one tensor");
    offsets.push_back(members.integer("offset"));
    specs.push_back(std::move(spec));
  }
  try {
    ParameterLayout layout(std::move(specs));
    for (std::size_t i = 0; i < layout.size(); ++i) {
      require(layout.offset(i) == offsets[i], "parameter {} is said to begin at element {}, expected {}",
              quoted_name(layout.specs()[i].name), offsets[i], layout.offset(i));
    }
    return layout;
  } catch (const Error& error) {
    fail(ErrorCode::kCorrupt, "{}: {}", file, error.what());
  }
}

void parse_files(const Members& root, const std::string& file, Manifest& manifest) {
  std::unordered_set<std::string> names;
  for (const json& entry : root.list("files")) {
    const Members members(entry, file + ": \"files\"");
    CheckpointFile& f = manifest.files.emplace_back();
    f = {members.file_name("name"), members.integer("bytes"), members.hash("xxh3_128")};
    members.check(names.insert(f.name).second, "name", "named once");
  }
  manifest.model_file.clear();
  for (const char* name : {kModelFileName, kAdapterFileName, kPartFileName}) {
    if (names.contains(name)) {
      root.check(manifest.model_file.empty(), "files", "of one model: several files of weights are among them");
      manifest.model_file = name;
    }
  }
  root.check(!manifest.model_file.empty(), "files", "complete: model.safetensors is not among them");
  std::uint64_t covered = 0;
  for (const json& entry : root.list("state")) {
    const Members members(entry, file + ": \"state\"");
    StateShard& shard = manifest.shards.emplace_back();
    shard = {members.file_name("file"), {members.integer("begin"), members.integer("end")}};
    members.check(names.contains(shard.file), "file", "one of \"files\"");
    members.check(shard.range.begin == covered && shard.range.end >= covered &&
                      shard.range.end % ParameterLayout::kAlignment == 0,
                  "begin", "where the state before it ends");
    covered = shard.range.end;
  }
  root.check(covered == manifest.layout.total(), "state", "complete: it does not cover the parameters");
}

}  // namespace

std::string manifest_text(const Manifest& manifest) {
  const RunPosition& position = manifest.position;
  ordered_json loss = nullptr;
  if (position.validation_loss && std::isfinite(*position.validation_loss)) {
    loss = *position.validation_loss;
  }
  const json extra = parse_strict_json(position.extra_json, "checkpoint: extra values");
  require(extra.is_object(), "checkpoint: extra values: expected a JSON object");
  std::string text = "{\n";
  append_member(text, "format", kFormat);
  append_member(text, "version", kCheckpointVersion);
  append_member(text, "step", position.step);
  append_member(text, "world", manifest.world);
  append_member(text, "samples", position.samples);
  append_member(text, "tokens", position.tokens);
  append_member(text, "seed", position.seed);
  append_member(text, "validation_loss", loss);
  append_member(text, "digest", manifest.digest.hex());
  append_member(text, "model_dtype", std::string(name_of(manifest.model_dtype)));
  append_member(text, "config", position.config_text);
  append_member(text, "extra", extra);
  std::vector<ordered_json> rows;
  for (const CheckpointFile& file : manifest.files) {
    rows.push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.hash.hex()}});
  }
  append_list(text, "files", std::exchange(rows, {}));
  for (const StateShard& shard : manifest.shards) {
    rows.push_back({{"file", shard.file}, {"begin", shard.range.begin}, {"end", shard.range.end}});
  }
  append_list(text, "state", std::exchange(rows, {}));
  for (std::size_t i = 0; i < manifest.layout.size(); ++i) {
    rows.push_back(parameter_json(manifest.layout, i));
  }
  append_list(text, "parameters", rows);
  return seal_manifest(text);
}

std::string seal_manifest(std::string_view body) {
  return fmt::format("{}{}{}{}", body, kSealBegin, hash_of(body).hex(), kSealEnd);
}

Manifest parse_manifest(std::string_view text, const std::string& file) {
  if (text.size() < kSealBytes) {
    fail(ErrorCode::kCorrupt, "{}: {} bytes are too few for a manifest", file, text.size());
  }
  const std::string_view body = text.substr(0, text.size() - kSealBytes);
  if (seal_manifest(body) != text) {
    fail(ErrorCode::kCorrupt, "{}: was altered or cut short: its checksum does not match", file);
  }
  const json document = parse_strict_json(text, file);
  const Members root(document, file);
  root.check(root.text("format") == kFormat, "format", "that of a checkpoint");
  if (const std::uint64_t version = root.integer("version"); version != kCheckpointVersion) {
    fail(ErrorCode::kUnsupported, "{}: format version {}, this program reads {}", file, version, kCheckpointVersion);
  }
  Manifest manifest;
  manifest.position = parse_position(root);
  const std::uint64_t world = root.integer("world");
  root.check(world >= 1 && world <= 1'000'000, "world", "a number of ranks");
  manifest.world = static_cast<int>(world);
  manifest.digest = root.hash("digest");
  const std::string dtype = root.text("model_dtype");
  const auto type = std::ranges::find(kWeightTypes, dtype, [](DType of) { return name_of(of); });
  root.check(type != kWeightTypes.end(), "model_dtype", "f32, bf16 or f16");
  manifest.model_dtype = *type;
  manifest.layout = parse_layout(root, file);
  parse_files(root, file, manifest);
  return manifest;
}

std::string step_folder_name(std::uint64_t step) { return fmt::format("step-{:08}", step); }

std::optional<std::uint64_t> parse_step_folder_name(std::string_view name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) {
    return std::nullopt;
  }
  const std::string_view digits = name.substr(kPrefix.size());
  std::uint64_t step = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  // Only the spelling that step_folder_name() gives: two folders never stand for one step.
  return result.ec == std::errc() && step_folder_name(step) == name ? std::optional(step) : std::nullopt;
}

std::string state_file_name(int rank, int world) {
  return fmt::format("state-{:05}-of-{:05}.safetensors", rank, world);
}

}  // namespace lockstep
