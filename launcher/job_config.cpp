#include "launcher/job_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/file.h"
#include "launcher/llama_factory/llama_factory.h"
#include "trainer/model/architecture.h"
#include "trainer/model/parameters.h"

namespace lockstep {
namespace {

// Linux takes variables of 128 KiB, and each byte is two digits there.
constexpr std::size_t kMostBytes = 60'000;

}  // namespace

std::string read_job_config(const std::filesystem::path& path) {
  require(std::filesystem::exists(path), "{} does not exist", path.string());
  return read_file(path);
}

JobConfig parse_job_config(const std::string& text, const std::filesystem::path& origin,
                           std::span<const std::string> overrides, int world, const std::string& resume) {
  if (!is_llama_factory(text)) {
    return {parse_config(text, origin.string(), overrides), {}, {}, false};
  }
  LlamaFactoryJob job = read_llama_factory(text, origin.string(), std::max(1, world), resume);
  std::vector<std::string> settings = job.settings;
  settings.insert(settings.end(), overrides.begin(), overrides.end());
  JobConfig result{parse_config("", origin.string(), settings), std::move(job.packs), std::move(job.notes),
                   job.starts_over_on_other_data};
  // Names of layers that are not there are to be told of before anything is packed.
  const std::filesystem::path model = std::filesystem::path(result.config.model.from) / "config.json";
  static_cast<void>(make_parameters(from_hf_config(read_file(model), model.string()), result.config.tune));
  return result;
}

// In hexadecimal digits: mpirun cuts variables at semicolons, and other hosts get each in a line.
std::string to_config_variable(const std::string& text, const std::filesystem::path& origin) {
  require(text.size() <= kMostBytes, "{}: found {} bytes, expected at most {} in a file that is launched",
          origin.string(), text.size(), kMostBytes);
  std::string digits;
  for (const char c : text) {
    digits += fmt::format("{:02x}", static_cast<unsigned char>(c));
  }
  return digits;
}

std::optional<std::string> launched_config(const EnvironmentLookup& environment) {
  const std::optional<std::string> digits = environment(kConfigVariable);
  if (!digits || digits->empty()) {
    return {};
  }
  std::string text;
  bool well_formed = digits->size() % 2 == 0;
  for (std::size_t i = 0; well_formed && i < digits->size(); i += 2) {
    unsigned char byte = 0;
    const char* const begin = digits->data() + i;
    const auto [end, error] = std::from_chars(begin, begin + 2, byte, 16);
    well_formed = error == std::errc() && end == begin + 2;
    text += static_cast<char>(byte);
  }
  require(well_formed, "{} is not what lockstep launch sets; expected hexadecimal digits", kConfigVariable);
  return text;
}

std::filesystem::path launched_config_file(const std::filesystem::path& run) { return run / "launch.yaml"; }

}  // namespace lockstep
