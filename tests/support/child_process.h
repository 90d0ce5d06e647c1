// Runs part of a test in a forked child: to kill it, or to change what only a whole process can change.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <functional>

namespace lockstep {

// The child calls `body` and ends with what it returns, without the parent's destructors and test framework; a thrown
// exception is printed and ends it with 99. Call it while the parent has no other threads.
inline pid_t start_child(const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    int result = 99;
    try {
      result = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    std::fflush(nullptr);
    _exit(result);
  }
  return child;
}

// The child's exit code, or -N when signal N ended it.
inline int wait_for_child(pid_t child) {
  int status = 0;
  if (waitpid(child, &status, 0) != child) {
    return 98;
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace lockstep
