// lockstep bench allreduce
#pragma once

namespace CLI {
class App;
}

namespace lockstep {

struct CommandContext;

void add_all_reduce_bench(CLI::App& bench, CommandContext& context);

}  // namespace lockstep
