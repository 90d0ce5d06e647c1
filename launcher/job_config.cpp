#include "launcher/job_config.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "launcher/llama_factory/llama_factory.h"
#include "trainer/model/architecture.h"
#include "trainer/model/parameters.h"

namespace lockstep {

JobConfig load_job_config(const std::filesystem::path& path, std::span<const std::string> overrides, int world,
                          const std::string& resume) {
  const std::string text = std::filesystem::is_regular_file(path) ? read_file(path) : "";
  if (!is_llama_factory(text)) {
    return {load_config(path, overrides), {}, {}, false};
  }
  LlamaFactoryJob job = read_llama_factory(text, path.string(), std::max(1, world), resume);
  std::vector<std::string> settings = job.settings;
  settings.insert(settings.end(), overrides.begin(), overrides.end());
  JobConfig result{parse_config("", path.string(), settings), std::move(job.packs), std::move(job.notes),
                   job.starts_over_on_other_data};
  // Names of layers that are not there are to be told of before anything is packed.
  const std::filesystem::path model = std::filesystem::path(result.config.model.from) / "config.json";
  static_cast<void>(make_parameters(from_hf_config(read_file(model), model.string()), result.config.tune));
  return result;
}

}  // namespace lockstep
