#include "trainer/device.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <map>
#include <set>

#include "base/cuda/devices.h"
#include "base/error.h"
#include "trainer/gemm_rate.h"

namespace lockstep {
namespace {

// One line a rank: why it has no GPU, or its host and its GPUs.
struct Answer {
  RankGpus gpus;
  std::vector<std::string> names;  // of the GPUs
  std::string problem;
};

// Why a GPU that can be used cannot compute in `precision`; empty: it can.
std::string problem_with(const cuda::DeviceInfo& device, Precision precision) {
  constexpr int kFirstWithBf16 = 8;
  return precision == Precision::kBf16 && device.major < kFirstWithBf16
             ? fmt::format("compute capability {}.{} and no bf16; expected precision fp16 or fp32", device.major,
                           device.minor)
             : "";
}

Answer own_answer(Precision precision) {
  std::array<char, HOST_NAME_MAX + 1> host{};
  gethostname(host.data(), HOST_NAME_MAX);
  Answer answer{{host.data(), {}}, {}, {}};
  const cuda::DeviceList list = cuda::list_devices();
  answer.problem = list.problem;
  for (const cuda::DeviceInfo& device : list.devices) {
    const std::string problem = device.problem.empty() ? problem_with(device, precision) : device.problem;
    if (problem.empty()) {
      answer.gpus.bus_ids.push_back(device.bus_id);
      answer.names.push_back(device.name);
    } else if (answer.problem.empty()) {
      answer.problem = fmt::format("{}: {}", device.name, problem);
    }
  }
  return answer;
}

// Tab-separated: none of the parts holds one.
std::string to_text(const Answer& answer) {
  std::string text = answer.gpus.host + '\t' + answer.problem;
  for (std::size_t i = 0; i < answer.names.size(); ++i) {
    text += '\t' + answer.gpus.bus_ids[i] + '\t' + answer.names[i];
  }
  return text;
}

Answer from_text(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\t', begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  Answer answer{{parts[0], {}}, {}, parts[1]};
  for (std::size_t i = 2; i + 1 < parts.size(); i += 2) {
    answer.gpus.bus_ids.push_back(parts[i]);
    answer.names.push_back(parts[i + 1]);
  }
  return answer;
}

// The device's number as CUDA counts: GPUs that cannot be used count as well.
int cuda_index_of(const std::string& bus_id) {
  const cuda::DeviceList list = cuda::list_devices();
  const auto found = std::ranges::find(list.devices, bus_id, &cuda::DeviceInfo::bus_id);
  return static_cast<int>(found - list.devices.begin());
}

}  // namespace

GpuAssignment assign_gpus(const std::vector<RankGpus>& ranks) {
  GpuAssignment assignment;
  std::map<std::pair<std::string, std::string>, int> uses;  // of a GPU of a host
  for (const RankGpus& rank : ranks) {
    int best = -1;
    int fewest = INT_MAX;
    for (std::size_t i = 0; i < rank.bus_ids.size(); ++i) {
      if (const int used = uses[{rank.host, rank.bus_ids[i]}]; used < fewest) {
        best = static_cast<int>(i);
        fewest = used;
      }
    }
    if (best >= 0) {
      assignment.is_shared |= ++uses[{rank.host, rank.bus_ids[static_cast<std::size_t>(best)]}] > 1;
    }
    assignment.index.push_back(best);
  }
  return assignment;
}

DeviceChoice choose_device(const DeviceConfig& config, Precision precision, Communicator& communicator) {
  if (config.kind == DeviceWish::kCpu) {
    return {};
  }
  std::vector<RankGpus> ranks;
  std::vector<std::vector<std::string>> names;
  std::string problem;
  for (const std::string& text : communicator.all_gather_text(to_text(own_answer(precision)))) {
    const Answer answer = from_text(text);
    if (problem.empty() && answer.gpus.bus_ids.empty()) {
      problem = fmt::format("rank {} on {}: {}", ranks.size(), answer.gpus.host, answer.problem);
    }
    ranks.push_back(answer.gpus);
    names.push_back(answer.names);
  }
  if (!problem.empty()) {
    if (config.kind == DeviceWish::kCuda) {
      fail(ErrorCode::kUnsupported, "device: cuda: {}", problem);
    }
    return {};
  }
  const GpuAssignment assignment = assign_gpus(ranks);
  const auto own = static_cast<std::size_t>(communicator.rank());
  const std::size_t index = static_cast<std::size_t>(assignment.index[own]);
  require(!assignment.is_shared || config.share,
          "device: {} ranks are more than the GPUs of their nodes ({} has {}); start fewer, set device.share: true, or "
          "device: cpu",
          ranks.size(), ranks[0].host, ranks[0].bus_ids.size());
  std::set<std::string> kinds;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    kinds.insert(names[rank][static_cast<std::size_t>(assignment.index[rank])]);
  }
  return {{DeviceKind::kCuda, static_cast<std::uint8_t>(cuda_index_of(ranks[own].bus_ids[index]))},
          assignment.is_shared,
          config.tf32,
          kinds.size() == 1
              ? ""
              : fmt::format("the ranks have different GPUs ({}): that bits are the same holds for one kind",
                            fmt::join(kinds, ", "))};
}

std::string name_of(const Device& device) {
  if (device.kind == DeviceKind::kCpu) {
    return "CPU";
  }
  const cuda::DeviceList list = cuda::list_devices();
  return device.index < list.devices.size() ? list.devices[device.index].name : "a GPU";
}

std::unique_ptr<Backend> make_backend(const DeviceChoice& choice, int threads) {
  return choice.device.kind == DeviceKind::kCpu ? make_cpu_backend(threads)
                                                : make_cuda_backend(choice.device.index, threads, choice.tf32);
}

// NVIDIA's data sheets: f16, and but for the T4 bf16, on tensor cores without sparsity, of which TF32 reaches half on
// each of these cards that has it; f32 on the ordinary cores. The first name that occurs in the driver's counts.
double stated_peak_flop_per_s(const std::string& name, DType working, bool tf32) {
  struct Peak {
    const char* name;
    double half;
    double f32;
    bool has_tf32 = true;
  };
  constexpr std::array kPeaks = {Peak{"B200", 2250e12, 75e12},         Peak{"B100", 1750e12, 60e12},
                                 Peak{"H200", 989e12, 67e12},          Peak{"GH200", 989e12, 67e12},
                                 Peak{"H100 PCIe", 756e12, 51e12},     Peak{"H100 NVL", 835e12, 60e12},
                                 Peak{"H100", 989e12, 67e12},          Peak{"H800", 989e12, 67e12},
                                 Peak{"H20", 148e12, 44e12},           Peak{"A100", 312e12, 19.5e12},
                                 Peak{"A800", 312e12, 19.5e12},        Peak{"A30", 165e12, 10.3e12},
                                 Peak{"A40", 149.7e12, 37.4e12},       Peak{"A10", 125e12, 31.2e12},
                                 Peak{"L40S", 362e12, 91.6e12},        Peak{"L40", 181e12, 90.5e12},
                                 Peak{"L4", 121e12, 30.3e12},          Peak{"RTX 6000 Ada", 364.2e12, 91.1e12},
                                 Peak{"RTX A6000", 154.8e12, 38.7e12}, Peak{"Tesla T4", 65e12, 8.1e12, false}};
  for (const Peak& peak : kPeaks) {
    if (name.find(peak.name) != std::string::npos) {
      if (working != DType::kF32) {
        return peak.half;
      }
      return tf32 && peak.has_tf32 ? peak.half / 2 : peak.f32;
    }
  }
  return 0;
}

double peak_flop_per_s(Backend& backend, DType working, bool tf32) {
  const bool on_gpu = backend.device().kind == DeviceKind::kCuda;
  const double stated = on_gpu ? stated_peak_flop_per_s(name_of(backend.device()), working, tf32) : 0;
  return stated > 0 ? stated : measure_gemm_rate(backend, working);
}

}  // namespace lockstep
