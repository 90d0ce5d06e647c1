// The twin of devices.cpp in a build without CUDA.
#include "base/cuda/devices.h"

namespace lockstep::cuda {

DeviceList list_devices() { return {{}, "this program was built without CUDA (CMake option LOCKSTEP_WITH_CUDA)"}; }

}  // namespace lockstep::cuda
