// Looks for a host that answers, while other things are seen to.
#pragma once

#include <future>
#include <optional>
#include <string>
#include <vector>

#include "launcher/job/job_process.h"

namespace lockstep {

class HostSearch {
 public:
  // Asks them one after the other. The destructor waits for the answer to the question under way.
  HostSearch(std::vector<std::string> hosts, const JobSurroundings& job);

  // The first that answers, or empty when none does. Nothing as long as that is not known; once it is, it is told once.
  [[nodiscard]] std::optional<std::string> result();

 private:
  std::future<std::string> answer_;
};

}  // namespace lockstep
