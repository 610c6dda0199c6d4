// Check for usable CUDA devices.
#pragma once
#include <string>

namespace mk::cuda {

// Return the runtime's reason why this process cannot run CUDA kernels: no driver, a driver older than the toolkit, no
// device. Empty if it can.
std::string why_not();

}  // namespace mk::cuda
