#include "comm/communicator.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "base/error.h"

namespace lockstep {

Work::Work(std::shared_ptr<State> state) : state_(std::move(state)) {}

Work& Work::operator=(Work&& other) noexcept {
  if (this != &other) {
    Work finished(std::move(*this));  // waits for what this handle stood for
    state_ = std::move(other.state_);
  }
  return *this;
}

Work::~Work() {
  try {
    wait();
  } catch (const Error&) {
    // The group is unusable from here on: the next call on the communicator throws the same error.
  }
}

void Work::wait() {
  if (state_) {
    const std::shared_ptr<State> state = std::move(state_);
    state->wait();
  }
}

bool Work::is_done() const { return !state_ || state_->is_done(); }

std::vector<std::string> Communicator::all_gather_text(const std::string& mine) {
  const auto ranks = static_cast<std::size_t>(world_size());
  const std::uint64_t my_size = mine.size();
  std::vector<std::uint64_t> sizes(ranks);
  all_gather(std::as_bytes(std::span(&my_size, 1)), std::as_writable_bytes(std::span(sizes)));

  std::uint64_t longest = 0;
  for (const std::uint64_t size : sizes) {
    longest = std::max(longest, size);
  }
  std::string padded = mine;
  padded.resize(longest);
  std::string all(longest * ranks, '\0');
  all_gather(std::as_bytes(std::span(padded)), std::as_writable_bytes(std::span(all)));

  std::vector<std::string> texts;
  for (std::size_t r = 0; r < ranks; ++r) {
    texts.push_back(all.substr(r * longest, sizes[r]));
  }
  return texts;
}

std::string Communicator::broadcast_text(const std::string& text, int root) {
  std::uint64_t size = text.size();
  broadcast(std::as_writable_bytes(std::span(&size, 1)), root);
  std::string result = rank() == root ? text : std::string(size, '\0');
  broadcast(std::as_writable_bytes(std::span(result)), root);
  return result;
}

void end_process(int exit_code) {
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

}  // namespace lockstep
