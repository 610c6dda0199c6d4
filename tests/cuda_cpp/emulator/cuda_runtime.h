// As much of CUDA as csrc/cuda/ uses, on the host: the kernels compile unchanged as C++ and every thread of a block is a
// fiber, so indices, barriers, shuffles and the order of sums are the device's own. A block runs in one system thread,
// warp after warp, each as far as it gets without the others, in an order that emulate::order() changes: what depends on
// it is a race. A barrier that some threads do not reach is an error. What this cannot show: memory ordering, speed.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
template <class T>
void __stcg(T* place, T value) {
  *place = value;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

constexpr int kMost = 1024, kWarp = 32;
constexpr size_t kStack = 1 << 16;

struct Fiber {
  ucontext_t context;  // how it begins; a switch by it would be a system call, so all others are jumps
  jmp_buf place;
  bool idle = false;  // at the top of enter(), ready for another block
  std::vector<char> stack = std::vector<char>(kStack);
  dim3 index;
  int waits_for = 0;  // 0: runs, 1: the block, 2: its warp
  bool begun = false, done = false;
  uint64_t slot = 0;  // what a shuffle or a count exchanges
};

inline int& order() {  // 0: by index; 1: backwards; more: shuffled
  static int value = 0;
  return value;
}

struct Block {
  std::vector<Fiber> fibers;
  std::function<void()> body;
  jmp_buf scheduler;
  int current = 0, size = 0;

  static Block& the() {
    static Block block;
    return block;
  }

  static void enter() {
    Block& block = the();
    Fiber& fiber = block.fibers[block.current];
    while (true) {
      fiber.idle = false;
      block.body();
      fiber.done = fiber.idle = true;
      block.leave(fiber);
    }
  }

  void leave(Fiber& fiber) {
    if (_setjmp(fiber.place) == 0) _longjmp(scheduler, 1);
  }

  void wait(int scope) {
    Fiber& fiber = fibers[current];
    fiber.waits_for = scope;
    leave(fiber);
  }

  // Lets go whoever waits at a barrier that all of [begin, end) have reached.
  bool release(int begin, int end, int scope) {
    for (int i = begin; i < end; ++i)
      if (fibers[i].done || fibers[i].waits_for != scope) return false;
    for (int i = begin; i < end; ++i) fibers[i].waits_for = 0;
    return true;
  }

  // 0 .. n - 1 in the order asked for.
  static std::vector<int> turns(int n) {
    std::vector<int> out(n);
    std::iota(out.begin(), out.end(), 0);
    if (order() == 1) std::reverse(out.begin(), out.end());
    if (order() > 1) std::shuffle(out.begin(), out.end(), std::mt19937(order()));
    return out;
  }

  void resume(int number) {
    Fiber& fiber = fibers[number];
    if (fiber.done || fiber.waits_for) return;
    current = number;
    threadIdx = fiber.index;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
  }

  void run(dim3 shape) {
    size = static_cast<int>(shape.x * shape.y * shape.z);
    if (size > kMost || size % kWarp) throw std::runtime_error("emulated block of an odd size");
    if (fibers.size() < static_cast<size_t>(size)) fibers.resize(size);
    const std::vector<int> warps = turns(size / kWarp), lanes = turns(kWarp);
    for (int i = 0; i < size; ++i) {
      Fiber& fiber = fibers[i];
      fiber.index = dim3(i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y));
      fiber.waits_for = 0;
      fiber.done = false;
      fiber.begun = fiber.idle;
      if (fiber.idle) continue;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    do {
      for (int warp : warps) {
        do {
          for (int lane : lanes) resume(warp * kWarp + lane);
        } while (release(warp * kWarp, (warp + 1) * kWarp, 2));
      }
    } while (release(0, size, 1));
    for (int i = 0; i < size; ++i)
      if (!fibers[i].done) throw std::runtime_error("a barrier that some threads of the block did not reach");
  }
};

template <class T>
T exchange(T value, int lane_mask) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  Block& block = Block::the();
  const int mine = block.current;
  std::memcpy(&block.fibers[mine].slot, &value, sizeof value);
  block.wait(2);
  std::memcpy(&value, &block.fibers[mine ^ lane_mask].slot, sizeof value);
  block.wait(2);
  return value;
}

}  // namespace emulate

inline void __syncthreads() { emulate::Block::the().wait(1); }

inline int __syncthreads_count(bool predicate) {
  auto& block = emulate::Block::the();
  block.fibers[block.current].slot = predicate;
  block.wait(1);
  int count = 0;
  for (int i = 0; i < block.size; ++i) count += static_cast<int>(block.fibers[i].slot);
  block.wait(1);
  return count;
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  if (mask != 0xffffffffu) throw std::runtime_error("only whole warps are emulated");
  return emulate::exchange(value, lane_mask);
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  auto& block = emulate::Block::the();
  block.body = [&] { kernel(static_cast<P>(arguments)...); };
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) block.run(blockDim);
  return cudaSuccess;
}
