// For LD_PRELOAD: delays rank 2 wherever it polls Open MPI for the first seconds, as a busy machine may. Then it is in
// MPI_Init still when others, were there no barrier at its end, have left it and send their first messages.
#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

extern "C" __attribute__((visibility("default"))) void opal_progress() {
  using Progress = void (*)();
  static const auto progress = reinterpret_cast<Progress>(dlsym(RTLD_NEXT, "opal_progress"));
  static const bool is_delayed = [] {
    const char* const rank = std::getenv("PMIX_RANK");
    return rank != nullptr && std::strcmp(rank, "2") == 0;
  }();
  static int left = 40;
  if (is_delayed && left > 0) {
    --left;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    // A message needs several rounds: its connection, the greeting, itself.
    for (int i = 0; i < 5; ++i) {
      progress();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  progress();
}
