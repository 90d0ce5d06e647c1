// The machines of a job, how many ranks each takes, and how many ranks a job has on those that answer.
#pragma once

#include <string>
#include <vector>

namespace lockstep {

struct Host {
  std::string name;
  int slots = 1;  // ranks it takes

  friend bool operator==(const Host&, const Host&) = default;
};

// "a,b:2", or the path of a file with a line "NAME [slots=N]" for each host; # begins a comment. Throws Error(kUsage)
// for anything else, for a host that stands there twice, and for what looks like a file that is not there ("a/b",
// "hosts.txt"; "node.example.org" is a host).
[[nodiscard]] std::vector<Host> parse_hosts(const std::string& text);
// Slurm's SLURM_TASKS_PER_NODE ("2(x3),1") for as many hosts. Throws Error(kUsage).
[[nodiscard]] std::vector<int> parse_tasks_per_node(const std::string& text);

// Which ranks run where. Ranks are a power of two, so that a job that lost a host keeps its bits.
struct Placement {
  int ranks = 0;            // 0: there is no host
  std::vector<Host> hosts;  // those that take part, with the ranks that each is given
};
// The largest power of two that neither exceeds `most` nor the slots of all hosts, on the first hosts in order, each
// filled before the next.
[[nodiscard]] Placement place(const std::vector<Host>& hosts, int most);

}  // namespace lockstep
