#include "base/cuda/library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/error.h"

namespace lockstep::cuda {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(':', begin), text.size());
    if (end > begin) {
      parts.push_back(text.substr(begin, end - begin));
    }
    begin = end + 1;
  }
  return parts;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// pip puts libraries into lib/pythonX.Y/site-packages/nvidia/PACKAGE/lib below the environment's folder.
void add_pip_folders(const fs::path& environment_folder, std::vector<std::string>& folders) {
  std::error_code ignored;
  for (const fs::directory_entry& python : fs::directory_iterator(environment_folder / "lib", ignored)) {
    const fs::path packages = python.path() / "site-packages" / "nvidia";
    for (const fs::directory_entry& package : fs::directory_iterator(packages, ignored)) {
      if (fs::is_directory(package.path() / "lib", ignored)) {
        folders.push_back((package.path() / "lib").string());
      }
    }
  }
}

// Where the build found the libraries, and below a Python environment that is active.
std::vector<std::string> other_folders() {
  std::vector<std::string> folders = split(LOCKSTEP_CUDA_LIBRARY_FOLDERS);
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const std::string folder = environment(name); !folder.empty()) {
      add_pip_folders(folder, folders);
    }
  }
  return folders;
}

void* open_library(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL); }

}  // namespace

SharedLibrary::SharedLibrary(const std::string& name) : name_(name) {
  std::string tried;
  std::string error;  // the most telling: of a library that is there and cannot be opened
  const auto open_in = [&](const std::vector<std::string>& folders) {
    for (const std::string& folder : folders) {
      if (handle_ != nullptr) {
        return;
      }
      const std::string path = (fs::path(folder) / name).string();
      std::error_code ignored;
      handle_ = open_library(path);
      if (handle_ == nullptr && error.empty() && fs::exists(path, ignored)) {
        error = dlerror();
      }
      tried += ", " + folder;
    }
  };
  open_in(split(environment("LOCKSTEP_CUDA_LIBRARIES")));
  std::string error_of_loader;
  if (handle_ == nullptr) {
    handle_ = open_library(name);
    error_of_loader = handle_ == nullptr ? dlerror() : "";
  }
  open_in(other_folders());
  if (handle_ == nullptr) {
    fail(
        ErrorCode::kUnsupported,
        "device: cuda: {} cannot be opened ({}); searched the loader's folders{}. LOCKSTEP_CUDA_LIBRARIES=FOLDER[:...] "
        "names where it is",
        name, error.empty() ? error_of_loader : error, tried);
  }
}

bool SharedLibrary::has(const char* name) const { return dlsym(handle_, name) != nullptr; }

void* SharedLibrary::address_of(const char* name) const {
  void* address = dlsym(handle_, name);
  if (address == nullptr) {
    fail(ErrorCode::kUnsupported, "device: cuda: {} has no function {}: it is too old", name_, name);
  }
  return address;
}

}  // namespace lockstep::cuda
