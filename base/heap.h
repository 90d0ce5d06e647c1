// How the C library's heap treats memory that is given back.
#pragma once

namespace lockstep {

// Keeps freed memory in the process: a training step asks for the same scratch memory (oneDNN's, for one) again and
// again, and a heap that hands its end back to the system after each call pays with page faults in the next. To be
// called before the first allocation of consequence; blocks of 32 MiB and more still go back.
void keep_freed_memory();

}  // namespace lockstep
