// How Python hands over memory: tensor.data_ptr(), 0 where an optional tensor is absent.
#pragma once
#include <cstdint>

namespace mk {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace mk
