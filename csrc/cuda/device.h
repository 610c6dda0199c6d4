// Whether this process can run CUDA kernels.
#pragma once
#include <string>

namespace mk::cuda {

// Empty where it can; else the runtime's reason: no driver, one older than the toolkit it was built with, no device.
std::string why_not();

}  // namespace mk::cuda
