// The least that a sum over the ranks could cost on this machine.
#pragma once

#include <cstddef>

namespace lockstep {

class Yardstick {
 public:
  virtual ~Yardstick() = default;
  // Milliseconds that it takes for `count` floats, on average over `repeats` > 0 in a row. Collective.
  [[nodiscard]] virtual double time_sum(std::size_t count, int repeats) = 0;
};

}  // namespace lockstep
