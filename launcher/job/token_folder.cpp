#include "launcher/job/token_folder.h"

#include <stdlib.h>

#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "comm/control/token.h"

namespace lockstep {

TokenFolder::TokenFolder() : token_(control::JobToken::random().hex()) {
  std::string name = (std::filesystem::temp_directory_path() / "lockstep-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) {
    fail_errno("launch: make a folder " + name);
  }
  folder_ = name;
  write_file_atomic(file(), token_ + "\n", Readers::kOwner);
}

TokenFolder::~TokenFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace lockstep
