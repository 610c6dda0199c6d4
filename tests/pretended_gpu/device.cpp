// A CUDA device for torch that is the CPU: its memory is the CPU's, and each operation runs on the CPU's tensors of the
// same memory. As on a GPU, tensors of two devices do not mix and values are read by copies, which are counted.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using c10::BackendComponent;
using c10::Device;
using c10::DeviceType;
using c10::Storage;
using c10::Stream;

const Device kDevice(DeviceType::CUDA, 0);
const Stream kStream(Stream::DEFAULT, kDevice);
thread_local Stream current_stream = kStream;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const noexcept override { return current_stream; }
  Stream getDefaultStream(Device) const override { return kStream; }
  Stream getNewStream(Device, int) const override {
    static std::atomic<c10::StreamId> last{0};
    return Stream(Stream::UNSAFE, kDevice, ++last);
  }
  Stream exchangeStream(Stream stream) const noexcept override { return std::exchange(current_stream, stream); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* place = bytes ? std::aligned_alloc(256, (bytes + 255) / 256 * 256) : nullptr;
    return {place, place, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Memory memory;

struct Registration {
  Registration() { c10::SetAllocator(DeviceType::CUDA, &memory); }
} registration;

// Draws what a generator of the CPU draws.
struct Generator final : c10::GeneratorImpl {
  at::Generator host = at::detail::createCPUGenerator(0);
  Generator() : c10::GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  static DeviceType device_type() { return DeviceType::CUDA; }
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  Generator* clone_impl() const override {
    auto* copy = new Generator();
    copy->host = host.clone();
    return copy;
  }
};

}  // namespace

namespace at {

struct CUDAHooks final : CUDAHooksInterface {  // torch looks for this name
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(kCPU); }
  Allocator* getCUDADeviceAllocator() const override { return &memory; }
  void deviceSynchronize(DeviceIndex) const override {}
  at::Generator getNewGenerator(DeviceIndex) const override { return make_generator<::Generator>(); }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    static const at::Generator made = make_generator<::Generator>();
    return made;
  }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at

namespace {

// What the host waited for, since it was last read.
struct Waits {
  std::map<std::string, int64_t> counts;
  std::mutex lock;
  void note(const std::string& what) {
    const std::lock_guard<std::mutex> hold(lock);
    ++counts[what];
  }
} waits;

void free_storage(void* kept) { delete static_cast<Storage*>(kept); }

// The same memory as a storage of another device.
Storage on_device(const Storage& storage, Device device, c10::Allocator* allocator) {
  c10::DataPtr place(storage.mutable_data(), new Storage(storage), &free_storage, device);
  return Storage(Storage::use_byte_size_t(), storage.sym_nbytes(), std::move(place), allocator, /*resizable=*/true);
}

Tensor with_storage(const Storage& storage, const Tensor& like, BackendComponent from, BackendComponent to) {
  const auto* impl = like.unsafeGetTensorImpl();
  const auto keys = (impl->key_set().remove_backend(from) - c10::getAutocastRelatedKeySetFromBackend(from)) |
                    c10::DispatchKeySet(to) | c10::getAutocastRelatedKeySetFromBackend(to);
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, Storage(storage), keys, like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (impl->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

// The tensors of one call, on both sides.
class Call {
 public:
  Tensor to_host(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    for (const auto& [device, host] : tensors_)
      if (device.is_same(tensor)) return host;
    const Storage& storage = tensor.storage();
    auto found = storages_.find(storage.unsafeGetStorageImpl());
    if (found == storages_.end()) {
      const Storage host = on_device(storage, c10::kCPU, c10::GetAllocator(c10::kCPU));
      found = storages_.emplace(storage.unsafeGetStorageImpl(), std::make_pair(storage, host)).first;
    }
    const Tensor host =
        with_storage(found->second.second, tensor, BackendComponent::CUDABit, BackendComponent::CPUBit);
    tensors_.emplace_back(tensor, host);
    return host;
  }

  Tensor to_device(const Tensor& result) {
    if (!result.defined() || !result.is_cpu() || result.layout() != c10::kStrided) return result;
    for (const auto& [device, host] : tensors_)
      if (host.is_same(result)) return device;
    for (const auto& [_, pair] : storages_)
      if (pair.second.unsafeGetStorageImpl() == result.storage().unsafeGetStorageImpl())
        return with_storage(pair.first, result, BackendComponent::CPUBit, BackendComponent::CUDABit);
    const Storage made = on_device(result.storage(), kDevice, &memory);
    return with_storage(made, result, BackendComponent::CPUBit, BackendComponent::CUDABit);
  }

  // Ops with out= may have resized it.
  void keep_new_sizes() {
    for (auto& [_, pair] : storages_) {
      auto *device = pair.first.unsafeGetStorageImpl(), *host = pair.second.unsafeGetStorageImpl();
      if (device->data() == host->data() && device->nbytes() == host->nbytes()) continue;
      const Storage moved = on_device(pair.second, kDevice, &memory);
      device->set_data_ptr(std::move(moved.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks()));
      device->set_nbytes(host->nbytes());
    }
    for (auto& [device, host] : tensors_)
      if (device.sizes() != host.sizes() || device.strides() != host.strides())
        device.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  }

 private:
  std::vector<std::pair<Tensor, Tensor>> tensors_;                          // the device's and the CPU's
  std::map<c10::StorageImpl*, std::pair<Storage, Storage>> storages_;  // the same
};

Tensor checked(Call& call, const std::string& op, const Tensor& tensor) {
  const bool may_be_elsewhere = op.find("index") != std::string::npos || op.find("copy") != std::string::npos;
  TORCH_CHECK(!tensor.defined() || tensor.is_cuda() || tensor.dim() == 0 || may_be_elsewhere, op,
              ": Expected all tensors to be on the same device, but found at least two devices, cuda:0 and ",
              tensor.device(), "!");
  return call.to_host(tensor);
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  Call call;
  bool is_read = false;
  const size_t first = stack->size() - schema.arguments().size();
  for (size_t i = first; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = checked(call, schema.name(), value.toTensor());
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (auto& tensor : list) tensor = checked(call, schema.name(), tensor);
      value = c10::List<Tensor>(list);
    } else if (value.isList() && value.toList().elementType()->kind() == c10::TypeKind::OptionalType) {
      c10::List<std::optional<Tensor>> list;
      for (const c10::IValue& item : value.toListRef())
        list.push_back(item.isNone() ? std::nullopt
                                     : std::optional<Tensor>(checked(call, schema.name(), item.toTensor())));
      value = list;
    } else if (value.isDevice()) {
      const Device device = value.toDevice();
      TORCH_CHECK(device.index() < 1, "invalid device ordinal: ", device);
      is_read = is_read || device.is_cpu();
      value = Device(c10::kCPU);
    } else if (value.isGenerator() && value.toGenerator().device().is_cuda()) {
      value = static_cast<Generator*>(value.toGenerator().unsafeGetGeneratorImpl())->host;
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.keep_new_sizes();
  if (is_read) return;
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.to_device(value.toTensor());
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (auto& tensor : list) tensor = call.to_device(tensor);
      value = c10::List<Tensor>(list);
    }
  }
}

Tensor& copy(Tensor& to, const Tensor& from, bool non_blocking) {
  if (to.is_cuda() != from.is_cuda() && !non_blocking) waits.note(to.is_cuda() ? "copy to the device" : "copy to the host");
  Call call;
  Tensor host = call.to_host(to);
  host.copy_(call.to_host(from));
  return to;
}

at::Scalar item(const Tensor& tensor) {
  waits.note("read of a number");
  return at::_local_scalar_dense(Call().to_host(tensor));
}

Tensor nonzero(const Tensor& tensor) {
  waits.note("count of nonzero elements");
  Call call;
  return call.to_device(call.to_host(tensor).nonzero());
}

int64_t attention_by_the_formula(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double,
                                 bool, std::optional<double>, bool) {
  return 0;
}

const Tensor& resize(const Tensor& tensor, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  const size_t bytes = (tensor.storage_offset() + tensor.numel()) * tensor.element_size();
  if (bytes > storage->nbytes()) {
    auto place = memory.allocate(bytes);
    if (storage->nbytes()) std::memcpy(place.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr(std::move(place));
    storage->set_nbytes(bytes);
  }
  return tensor;
}

Tensor& set_part(Tensor& to, Storage storage, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  TORCH_CHECK(storage.device() == kDevice, "set_: expected a storage of cuda:0, got one of ", storage.device());
  auto* impl = to.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const auto strides = stride.empty() ? impl->strides().vec() : C10_AS_INTARRAYREF_SLOW(stride).vec();
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), strides, offset.guard_int(__FILE__, __LINE__));
  return to;
}

Tensor& set_whole(Tensor& to, Storage storage) {
  const c10::SymInt count = static_cast<int64_t>(storage.nbytes() / to.element_size());
  return set_part(to, std::move(storage), 0, count, {});
}

Tensor& set_tensor(Tensor& to, const Tensor& from) {
  return set_part(to, from.storage(), from.storage_offset(), from.sym_sizes(), from.sym_strides());
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", copy);
  library.impl("_local_scalar_dense", item);
  library.impl("nonzero", nonzero);
  library.impl("_fused_sdp_choice", attention_by_the_formula);
  library.impl("resize_", resize);
  library.impl("set_.source_Storage", set_whole);
  library.impl("set_.source_Storage_storage_offset", set_part);
  library.impl("set_.source_Tensor", set_tensor);
}

}  // namespace

// Returns lines of "what<tab>how often" and forgets them.
extern "C" const char* read_waits() {
  static std::string text;
  const std::lock_guard<std::mutex> hold(waits.lock);
  text.clear();
  for (const auto& [what, count] : waits.counts) text += what + "\t" + std::to_string(count) + "\n";
  waits.counts.clear();
  return text.c_str();
}
