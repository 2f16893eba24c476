// What the memory bus gives: the measure that the products are held against.
#pragma once

#include <cstdint>

#include "kernels/thread_pool.h"

namespace headgate::kernels {

// Reads `lines` cache lines of 64 bytes from `data`, 64-byte aligned, over all threads,
// and returns the exclusive or of their 64-bit words, so that no read can be left out.
uint64_t read_memory(ThreadPool& pool, const void* data, int64_t lines);

}  // namespace headgate::kernels
