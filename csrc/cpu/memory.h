// Advice to the operating system about large, fresh buffers.
#pragma once
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mk {

// Asks for 2 MiB pages under a buffer that nothing has touched yet: first-touch faults of 4 KiB pages would otherwise
// cost several percent of the products that fill it. Only advice: nothing depends on it.
inline void use_huge_pages(uintptr_t address, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = 4096, begin = (address + page - 1) & ~(page - 1), end = (address + bytes) & ~(page - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

}  // namespace mk
