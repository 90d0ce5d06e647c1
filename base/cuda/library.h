// CUDA's large libraries (cuBLASLt, cuDNN, NCCL), opened when they are first needed: one program runs on machines with
// and without them, and finds them wherever they were installed.
#pragma once

#include <string>

namespace lockstep::cuda {

class SharedLibrary {
 public:
  // Opens `name` (libcublasLt.so.13): in the folders of LOCKSTEP_CUDA_LIBRARIES (separated by colons), where the loader
  // finds it, where the build found it, or below a Python environment that is active (pip's nvidia-* packages).
  // Throws Error(kUnsupported) that names the library and where it was looked for. Stays open until the process ends.
  explicit SharedLibrary(const std::string& name);

  // The function `name`, of type Function. Throws Error(kUnsupported) where the library is too old to have it.
  template <typename Function>
  void find(const char* name, Function*& function) const {
    function = reinterpret_cast<Function*>(address_of(name));
  }
  [[nodiscard]] bool has(const char* name) const;

 private:
  [[nodiscard]] void* address_of(const char* name) const;

  std::string name_;
  void* handle_ = nullptr;
};

}  // namespace lockstep::cuda
