// The first call loads the driver.
#include "device.h"

#include <cuda_runtime.h>

namespace mk::cuda {

std::string why_not() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status == cudaSuccess) return devices ? "" : "no device";
  cudaGetLastError();
  return cudaGetErrorString(status);
}

}  // namespace mk::cuda
