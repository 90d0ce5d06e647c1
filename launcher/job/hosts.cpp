#include "launcher/job/hosts.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "base/file.h"

namespace lockstep {
namespace {

int parse_slots(const std::string& text, const std::string& where) {
  int slots = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), slots);
  require(error == std::errc() && end == text.data() + text.size() && slots >= 1 && slots <= 4096,
          "{}: found {} slots, expected a number from 1 to 4096", where, text);
  return slots;
}

Host parse_line(const std::string& line, const std::string& where) {
  std::istringstream words(line);
  Host host;
  words >> host.name;
  for (std::string word; words >> word;) {
    require(word.starts_with("slots="), "{}: found \"{}\", expected NAME [slots=N]", where, word);
    host.slots = parse_slots(word.substr(6), where);
  }
  return host;
}

Host parse_item(const std::string& item) {
  const std::size_t colon = item.find(':');
  Host host{item.substr(0, colon), 1};
  if (colon != std::string::npos) {
    host.slots = parse_slots(item.substr(colon + 1), "--hosts " + item);
  }
  return host;
}

// What is not there, and was meant to be a file: no list and no name of a host looks like that.
bool looks_like_a_file(const std::string& text) {
  if (text.find(',') != std::string::npos || text.find(':') != std::string::npos) {
    return false;
  }
  const std::string extension = std::filesystem::path(text).extension().string();
  return text.find('/') != std::string::npos || extension == ".txt" || extension == ".lst" || extension == ".list" ||
         extension == ".conf" || extension == ".cfg";
}

}  // namespace

std::vector<Host> parse_hosts(const std::string& text) {
  std::vector<Host> hosts;
  std::error_code not_a_path;  // a long list of names is too long for one
  if (std::filesystem::is_regular_file(text, not_a_path)) {
    std::istringstream lines(read_file(text));
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
      ++number;
      line.resize(std::min(line.find('#'), line.size()));
      if (line.find_first_not_of(" \t\r") != std::string::npos) {
        hosts.push_back(parse_line(line, fmt::format("{} line {}", text, number)));
      }
    }
  } else {
    require(!looks_like_a_file(text), "--hosts {}: there is no such file", text);
    std::istringstream items(text);
    for (std::string item; std::getline(items, item, ',');) {
      hosts.push_back(parse_item(item));
    }
  }
  require(!hosts.empty(), "--hosts {}: no host named; expected a,b:2 or a file with a line for each", text);
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    // What goes to ssh and mpirun must not look like an option or a list.
    require(
        !hosts[i].name.empty() && hosts[i].name[0] != '-' && hosts[i].name.find_first_of(" \t,:/") == std::string::npos,
        "--hosts {}: \"{}\" is no name of a host", text, hosts[i].name);
    const auto twice = std::find_if(hosts.begin(), hosts.begin() + static_cast<std::ptrdiff_t>(i),
                                    [&](const Host& host) { return host.name == hosts[i].name; });
    require(twice == hosts.begin() + static_cast<std::ptrdiff_t>(i), "--hosts {}: {} stands there twice", text,
            hosts[i].name);
  }
  return hosts;
}

std::vector<int> parse_tasks_per_node(const std::string& text) {
  std::vector<int> tasks;
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) {
    const std::size_t parenthesis = item.find("(x");
    int times = 1;
    if (parenthesis != std::string::npos) {
      require(item.back() == ')', "SLURM_TASKS_PER_NODE is {}; expected 2(x3),1", text);
      times = parse_slots(item.substr(parenthesis + 2, item.size() - parenthesis - 3), "SLURM_TASKS_PER_NODE " + text);
    }
    tasks.insert(tasks.end(), static_cast<std::size_t>(times),
                 parse_slots(item.substr(0, parenthesis), "SLURM_TASKS_PER_NODE " + text));
  }
  return tasks;
}

Placement place(const std::vector<Host>& hosts, int most) {
  int slots = 0;
  for (const Host& host : hosts) {
    slots += host.slots;
  }
  Placement placement;
  placement.ranks = static_cast<int>(std::bit_floor(static_cast<unsigned>(std::max(0, std::min(slots, most)))));
  int left = placement.ranks;
  for (const Host& host : hosts) {
    const int taken = std::min(left, host.slots);
    if (taken > 0) {
      placement.hosts.push_back({host.name, taken});
      left -= taken;
    }
  }
  return placement;
}

}  // namespace lockstep
