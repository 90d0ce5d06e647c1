#include "launcher/job/start_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"

namespace lockstep {
namespace {

std::string host_list(const Placement& placement) {
  std::vector<std::string> items;
  for (const Host& host : placement.hosts) {
    items.push_back(fmt::format("{}:{}", host.name, host.slots));
  }
  return fmt::format("{}", fmt::join(items, ","));
}

void append(std::vector<std::string>& arguments, std::initializer_list<std::string> more) {
  arguments.insert(arguments.end(), more);
}

ChildCommand mpirun_command(const StartPlan& plan) {
  ChildCommand command{{"mpirun", "-np", std::to_string(plan.placement.ranks)}};
  std::vector<std::string>& arguments = command.arguments;
  const bool is_4 = plan.mpirun_major < 5;
  if (plan.as_root) {
    arguments.emplace_back("--allow-run-as-root");
  }
  if (is_4) {
    arguments.emplace_back("--tag-output");
  } else {
    append(arguments, {"--output", "tag"});
  }
  // A rank has several threads, and the kernel places them better than a binding to one core would.
  append(arguments, {"--bind-to", "none"});
  if (!plan.placement.hosts.empty()) {
    append(arguments, {"--host", host_list(plan.placement)});
    if (!plan.ssh.empty()) {
      append(arguments, is_4 ? std::initializer_list<std::string>{"--mca", "plm_rsh_agent", plan.ssh}
                             : std::initializer_list<std::string>{"--prtemca", "plm_ssh_agent", plan.ssh});
    }
  } else if (plan.placement.ranks > plan.cores) {
    if (is_4) {
      arguments.emplace_back("--oversubscribe");
    } else {
      append(arguments, {"--map-by", ":OVERSUBSCRIBE"});
    }
    append(arguments, {"--mca", "mpi_yield_when_idle", "1"});
  }
  if (plan.placement.hosts.empty() && !plan.in_slurm) {
    append(arguments, {"--mca", "btl", "^tcp"});  // ranks of one machine need no network
  }
  for (const std::string& name : plan.forwarded) {
    append(arguments, {"-x", name});
  }
  return command;
}

ChildCommand srun_command(const StartPlan& plan) {
  ChildCommand command{{"srun", "--mpi=pmix", "--label", "--overlap", "--kill-on-bad-exit=1", "--cpu-bind=none",
                        "--distribution=block", fmt::format("--ntasks={}", plan.placement.ranks)}};
  // Without it the barrier at the end of MPI_Init is none: see comm/mpi/runtime.cpp.
  command.variables["SLURM_PMIX_FENCE"] = "ring";
  if (!plan.placement.hosts.empty()) {
    std::vector<std::string> names;
    int most = 0;
    for (const Host& host : plan.placement.hosts) {
      names.push_back(host.name);
      most = std::max(most, host.slots);
    }
    command.arguments.push_back(fmt::format("--nodes={}", names.size()));
    command.arguments.push_back(fmt::format("--nodelist={}", fmt::join(names, ",")));
    // At most so many. Without this the allocation's own number a node holds, and fewer hosts would be too few.
    command.arguments.push_back(fmt::format("--ntasks-per-node={}", most));
  }
  return command;
}

bool parse_rank(std::string_view text, int& rank) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}  // namespace

ChildCommand start_command(const StartPlan& plan) {
  ChildCommand command = plan.starter == JobStarter::kSrun ? srun_command(plan) : mpirun_command(plan);
  command.arguments.insert(command.arguments.end(), plan.worker.begin(), plan.worker.end());
  return command;
}

OutputLine parse_output(JobStarter starter, int mpirun_major, std::string_view line) {
  OutputLine own{-1, false, std::string(line)};
  OutputLine parsed;
  if (starter == JobStarter::kSrun) {
    const std::size_t colon = line.find(": ");
    const std::size_t begin = line.find_first_not_of(' ');
    if (colon == std::string_view::npos || begin >= colon ||
        !parse_rank(line.substr(begin, colon - begin), parsed.rank)) {
      return own;
    }
    parsed.text = line.substr(colon + 2);
    return parsed;
  }
  const std::size_t bracket = line.find("]<std");
  const std::size_t comma = line.rfind(',', bracket);
  const std::size_t end = line.find(">:", bracket);
  if (line.empty() || line[0] != '[' || bracket == std::string_view::npos || comma == std::string_view::npos ||
      end == std::string_view::npos || !parse_rank(line.substr(comma + 1, bracket - comma - 1), parsed.rank)) {
    return own;
  }
  parsed.is_error = line.substr(bracket + 2, end - bracket - 2) != "stdout";
  parsed.text = line.substr(end + 2);
  if (mpirun_major >= 5 && parsed.text.starts_with(' ')) {
    parsed.text.erase(0, 1);
  }
  return parsed;
}

int parse_mpirun_version(const std::string& text) {
  const std::string mark = "(Open MPI) ";
  const std::size_t begin = text.find(mark);
  int major = 0;
  if (begin != std::string::npos) {
    std::from_chars(text.data() + begin + mark.size(), text.data() + text.size(), major);
  }
  require(major >= 4, "mpirun --version says \"{}\"; expected Open MPI 4 or newer", text.substr(0, text.find('\n')));
  return major;
}

std::string quoted(const std::string& word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789_-./=:,+@%") == std::string::npos;
  if (plain) {
    return word;
  }
  std::string text = "'";
  for (const char c : word) {
    text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  return text + "'";
}

std::string shell_line(const ChildCommand& command) {
  std::vector<std::string> words;
  for (const auto& [name, value] : command.variables) {
    words.push_back(name + "=" + quoted(value));
  }
  for (const std::string& argument : command.arguments) {
    words.push_back(quoted(argument));
  }
  return fmt::format("{}", fmt::join(words, " "));
}

}  // namespace lockstep
