// Memory in huge pages: a page fault costs microseconds, and fresh memory takes one for every page.
#pragma once
#include <cstddef>

namespace mk {

// Ask Linux to back the pages inside [begin, begin + bytes) with huge ones from now on. Without support, do nothing.
void advise_huge_pages(void* begin, size_t bytes);

}  // namespace mk
