// Python classes for the structs that kernels take. A pointer field is set from tensor.data_ptr(), 0 for null; every
// field has the name and the default of the C++ struct.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu/pool.h"

namespace mk {

namespace py = pybind11;
using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class Struct>
class StructBinding {
 public:
  StructBinding(py::module_& m, const char* name) : binding_(m, name, py::module_local()) {
    binding_.def(py::init<>());
  }

  template <class Value>
  StructBinding& field(const char* name, Value Struct::*member) {
    binding_.def_readwrite(name, member);
    return *this;
  }

  template <class Target>
  StructBinding& field(const char* name, Target* Struct::*member) {
    binding_.def_property(
        name, [member](const Struct& self) { return reinterpret_cast<Address>(self.*member); },
        [member](Struct& self, Address address) { self.*member = at<Target>(address); });
    return *this;
  }

 private:
  py::class_<Struct> binding_;
};

// The structs of cpu/pool.h that the CUDA kernels take as well.
inline void bind_pooling_structs(py::module_& m) {
  StructBinding<Pooling>(m, "Pooling")
      .field("offsets", &Pooling::offsets)
      .field("segments", &Pooling::segments)
      .field("last", &Pooling::last)
      .field("normalize", &Pooling::normalize)
      .field("weights", &Pooling::weights)
      .field("query", &Pooling::query);
  StructBinding<Pooled>(m, "Pooled")
      .field("rows", &Pooled::rows)
      .field("norms", &Pooled::norms)
      .field("units", &Pooled::units);
}

}  // namespace mk
