#include "base/heap.h"

#include <malloc.h>

namespace lockstep {

void keep_freed_memory() {
#ifdef __GLIBC__
  // Both, because setting either ends the adjusting of both. 32 MiB is the most that M_MMAP_THRESHOLD takes.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
}

}  // namespace lockstep
