// Kernels built for several instruction sets. The best one that the processor supports runs, or the selected one.
//
// MK_KERNEL(Name, function) makes a kernel of an MK_INLINE function (template), and dispatch<Name>(arguments...) calls
// its copy for the selected instruction set. No file is compiled with -march, so no other function, such as std::min,
// can contain instructions that the processor lacks.
#pragma once
#include <string>
#include <vector>

#include "simd.h"

namespace mk {

// Names of the x86-64 levels that this processor supports, best first; on other processors only "baseline".
std::vector<std::string> instruction_sets();

// Get or set the level for the whole process. Throws std::invalid_argument.
std::string instruction_set();
void set_instruction_set(const std::string& name);

#define MK_KERNEL(Name, function)                                                    \
  struct Name {                                                                      \
    template <class... Arguments>                                                    \
    MK_INLINE static auto run(Arguments... arguments) { return function(arguments...); } \
  };

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)

enum class Level { baseline, avx2, avx512 };
extern Level selected_level;

#define MK_TARGET(arch) __attribute__((target(arch), optimize("O3,no-math-errno,no-trapping-math")))

template <class Kernel, class... Arguments>
MK_TARGET("arch=x86-64-v4") auto run_avx512(Arguments... arguments) { return Kernel::run(arguments...); }

template <class Kernel, class... Arguments>
MK_TARGET("arch=x86-64-v3") auto run_avx2(Arguments... arguments) { return Kernel::run(arguments...); }

template <class Kernel, class... Arguments>
MK_TARGET("arch=x86-64") auto run_baseline(Arguments... arguments) { return Kernel::run(arguments...); }

template <class Kernel, class... Arguments>
inline auto dispatch(Arguments... arguments) {
  switch (selected_level) {
    case Level::avx512: return run_avx512<Kernel>(arguments...);
    case Level::avx2: return run_avx2<Kernel>(arguments...);
    default: return run_baseline<Kernel>(arguments...);
  }
}

#else

template <class Kernel, class... Arguments>
inline auto dispatch(Arguments... arguments) { return Kernel::run(arguments...); }

#endif

}  // namespace mk
