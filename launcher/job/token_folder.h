// A token of parameter servers for one attempt, in a file of a temporary folder that only its owner can read.
#pragma once

#include <filesystem>
#include <string>

namespace lockstep {

class TokenFolder {
 public:
  // Makes folder, token and file. Throws Error(kIo, kNoSpace).
  TokenFolder();
  // Removes the folder.
  ~TokenFolder();
  TokenFolder(const TokenFolder&) = delete;
  TokenFolder& operator=(const TokenFolder&) = delete;

  [[nodiscard]] const std::string& token() const { return token_; }
  [[nodiscard]] std::filesystem::path file() const { return folder_ / "token"; }

 private:
  std::string token_;
  std::filesystem::path folder_;
};

}  // namespace lockstep
