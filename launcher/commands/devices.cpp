// lockstep devices: what there is to compute on.
#include "base/cuda/devices.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/cores.h"
#include "base/progress.h"
#include "launcher/commands/command.h"
#include "launcher/output.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const cuda::DeviceInfo& device, std::size_t index) {
  Json json = {{"index", index},
               {"name", device.name},
               {"compute_capability", fmt::format("{}.{}", device.major, device.minor)},
               {"multiprocessors", device.multiprocessors},
               {"memory_bytes", device.memory_bytes},
               {"bus_id", device.bus_id},
               {"usable", device.problem.empty()}};
  if (!device.problem.empty()) {
    json["problem"] = device.problem;
  }
  return json;
}

int run_devices(bool as_json) {
  const cuda::DeviceList list = cuda::list_devices();
  Json gpus = Json::array();
  std::string text = fmt::format("cpu     {} cores that this process may use\n", usable_cores());
  for (std::size_t i = 0; i < list.devices.size(); ++i) {
    const cuda::DeviceInfo& device = list.devices[i];
    gpus.push_back(to_json(device, i));
    text +=
        fmt::format("cuda {}  {}, compute capability {}.{}, {} multiprocessors, {} of memory, {}: {}\n", i, device.name,
                    device.major, device.minor, device.multiprocessors, format_bytes(device.memory_bytes),
                    device.bus_id, device.problem.empty() ? "usable" : "not usable: " + device.problem);
  }
  if (!list.problem.empty()) {
    text += fmt::format("cuda    none: {}\n", list.problem);
  }
  if (as_json) {
    Json json = {{"cores", usable_cores()}, {"gpus", gpus}};
    if (!list.problem.empty()) {
      json["problem"] = list.problem;
    }
    text = json.dump() + "\n";
  }
  print(text);
  return kExitDone;
}

}  // namespace

void add_devices(CLI::App& app, CommandContext& context) {
  const auto as_json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("devices", "List what there is to compute on, and why a GPU cannot be used");
  command->add_flag("--json", *as_json, "Print one JSON object");
  command->callback([as_json, &context] { context.run = [as_json] { return run_devices(*as_json); }; });
}

}  // namespace lockstep
