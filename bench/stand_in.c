// Stands in for libcuda.so.1 under Triton's own runtime: accepts what its driver asks of a device of compute capability
// 9.0, refuses what CUDA's documentation forbids, and notes every launch. Nothing runs. See stand_in.py.
#include <cuda.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define ACCEPT(name, ...) \
  CUresult name(__VA_ARGS__) { return CUDA_SUCCESS; }
#define GIVE(name, type, value, ...) \
  CUresult name(type *out, ##__VA_ARGS__) { return *out = value, CUDA_SUCCESS; }
#define WANT(ok, ...) \
  if (!(ok)) return snprintf(why, sizeof why, __VA_ARGS__), CUDA_ERROR_INVALID_VALUE
#define NOTE(...)                                                  \
  do {                                                             \
    WANT(used < ROOM - LONGEST, "notes: read them more often");    \
    used += snprintf(notes + used, LONGEST, __VA_ARGS__);          \
  } while (0)

enum {
  OPTIN = 227 << 10,  // bytes of shared memory that a block may ask for
  ROOM = 1 << 20,     // bytes of all notes and of one
  LONGEST = 128,
};
typedef struct {
  char name[64];
  int allowed;
} Function;

static char why[256] = "unknown error", notes[ROOM];
static Function functions[1024];
static int used, count;

const char *noted(void) { return notes[used] = 0, used = 0, notes; }  // since the last call

ACCEPT(cuInit, unsigned flags)
ACCEPT(cuCtxSetCurrent, CUcontext context)
ACCEPT(cuCtxSetLimit, CUlimit limit, size_t value)
ACCEPT(cuModuleUnload, CUmodule module)
ACCEPT(cuFuncSetCacheConfig, CUfunction function, CUfunc_cache config)
ACCEPT(cuStreamIsCapturing, CUstream stream, CUstreamCaptureStatus *status)
GIVE(cuDriverGetVersion, int, 13000)
GIVE(cuDeviceGet, CUdevice, ordinal, int ordinal)
GIVE(cuCtxGetDevice, CUdevice, 0)
GIVE(cuCtxGetCurrent, CUcontext, (CUcontext)1)
GIVE(cuDevicePrimaryCtxRetain, CUcontext, (CUcontext)1, CUdevice device)
GIVE(cuCtxGetLimit, size_t, 0, CUlimit limit)
GIVE(cuModuleLoadData, CUmodule, (CUmodule)image, const void *image)
GIVE(cuFuncGetAttribute, int, a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUfunction_attribute a, CUfunction f)

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute a, CUdevice device) {
  *value = a == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN ? OPTIN : 1 << 16;
  if (a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = 9;
  if (a == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) *value = 0;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) { return *text = why, CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute a, CUdeviceptr pointer) {
  return *(CUdeviceptr *)value = pointer, CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  Function *f = &functions[count++ % 1024];
  snprintf(f->name, sizeof f->name, "%s", name);
  return f->allowed = 48 << 10, *function = (CUfunction)f, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute a, int value) {
  WANT(a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value <= OPTIN, "attribute %d: %d", a, value);
  return ((Function *)function)->allowed = value, CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, unsigned rank, void *address,
                                const cuuint64_t *size, const cuuint64_t *stride, const unsigned *box,
                                const unsigned *step, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  static const unsigned BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}, SPANS[] = {1 << 30, 32, 64, 128};
  WANT(type < 13 && swizzle < 4 && !interleave, "type %d, swizzle %d, interleave %d", type, swizzle, interleave);
  WANT(rank >= 1 && rank <= 5, "rank %u", rank);
  WANT(!((size_t)map % 64) && !((size_t)address % 16), "map %p, address %p", (void *)map, address);
  unsigned inner = box[0] * BYTES[type];
  WANT(!(inner % 16) && inner <= SPANS[swizzle], "box of %u bytes, swizzled in %u", inner, SPANS[swizzle]);
  for (unsigned i = 0; i < rank; ++i) {
    WANT(size[i] >= 1 && size[i] <= 1ull << 32, "size %llu", (unsigned long long)size[i]);
    WANT(box[i] >= 1 && box[i] <= 256 && step[i] >= 1 && step[i] <= 8, "box %u, step %u", box[i], step[i]);
    WANT(i + 1 == rank || (!(stride[i] % 16) && stride[i] < 1ull << 40 && stride[i] >= size[i] * BYTES[type]),
         "stride %llu", (unsigned long long)stride[i]);
  }
  NOTE("map %u\n", box[1]);
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **parameters, void **extra) {
  Function *f = (Function *)function;
  WANT(c->gridDimX >= 1 && c->gridDimX < 1u << 31 && c->gridDimY == 1 && c->gridDimZ == 1, "grid %u", c->gridDimX);
  WANT(c->blockDimX >= 32 && c->blockDimX <= 1024 && c->blockDimY == 1 && c->blockDimZ == 1, "block %u", c->blockDimX);
  WANT((int)c->sharedMemBytes <= f->allowed, "%s: %u bytes of %d", f->name, c->sharedMemBytes, f->allowed);
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  NOTE("%s %u %lld\n", f->name, c->gridDimX, t.tv_sec * 1000000000ll + t.tv_nsec);
  return CUDA_SUCCESS;
}
