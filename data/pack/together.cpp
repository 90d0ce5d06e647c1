#include "data/pack/together.h"

#include <exception>
#include <filesystem>
#include <system_error>

#include "base/error.h"

namespace lockstep {
namespace {

// A rank's answer: 'r' and its result, or 'e', the error's code as a letter and its message.
constexpr char kResult = 'r';
constexpr char kError = 'e';

std::string error_answer(ErrorCode code, const char* message) {
  return std::string{kError, static_cast<char>('a' + static_cast<int>(code))} + message;
}

std::string answer_of(const std::function<std::string()>& work) {
  try {
    return kResult + work();
  } catch (const Error& error) {
    return error_answer(error.code(), error.what());
  } catch (const std::filesystem::filesystem_error& error) {
    const std::string message = error.path1().string() + ": " + error.code().message();
    const bool is_full = error.code() == std::errc::no_space_on_device;
    return error_answer(is_full ? ErrorCode::kNoSpace : ErrorCode::kIo, message.c_str());
  } catch (const std::exception& error) {
    return error_answer(ErrorCode::kIo, error.what());
  }
}

void throw_if_error(const std::string& answer) {
  if (answer.at(0) == kError) {
    throw Error(static_cast<ErrorCode>(answer.at(1) - 'a'), answer.substr(2));
  }
}

}  // namespace

std::vector<std::string> gather_together(const PackPeers& peers, const std::function<std::string()>& work) {
  std::vector<std::string> answers = peers.all_gather(answer_of(work));
  for (std::string& answer : answers) {
    throw_if_error(answer);
    answer.erase(0, 1);
  }
  return answers;
}

void together(const PackPeers& peers, const std::function<void()>& work) {
  gather_together(peers, [&] {
    work();
    return std::string();
  });
}

std::string on_first_rank(const PackPeers& peers, const std::function<std::string()>& work) {
  const std::string answer = peers.broadcast(peers.rank == 0 ? answer_of(work) : std::string(), 0);
  throw_if_error(answer);
  return answer.substr(1);
}

}  // namespace lockstep
