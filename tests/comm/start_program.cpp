// start_program BACKEND: makes a communicator as the command line does, prints what it is, and ends.
#include <cstdio>
#include <string>

#include "base/error.h"
#include "comm/communicator.h"

int main(int argc, char** argv) {
  using namespace lockstep;
  try {
    const auto comm = make_communicator({.backend = argc > 1 ? argv[1] : "auto"});
    std::printf("%s\n", comm->description().c_str());
    comm->close();
  } catch (const Error& error) {
    std::printf("%s\n", error.what());
    return error.code() == ErrorCode::kUsage ? 2 : 1;
  }
}
