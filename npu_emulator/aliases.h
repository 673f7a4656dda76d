// SPDX-License-Identifier: Apache-2.0
//
// NPU tensors as CPU tensors over the same memory, and CPU results as NPU tensors again.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>

#include <cstring>
#include <vector>

#include "torch_npu/csrc/core/NPUStorageImpl.h"

namespace npu_emulator {

using at::Tensor;
using c10::IValue;

constexpr auto kNpu = c10::DeviceType::PrivateUse1;

inline bool on_npu(const Tensor& t) { return t.defined() && t.device().type() == kNpu; }

// The memory format that torch_npu keeps for a tensor; the bytes themselves stay in order.
inline aclFormat& format_of(const Tensor& t) {
  auto* storage = static_cast<torch_npu::NPUStorageImpl*>(t.storage().unsafeGetStorageImpl());
  return storage->npu_desc_.npu_format_;
}

inline bool holds_tensors(const c10::Type& element) {
  switch (element.kind()) {
    case c10::TypeKind::TensorType: return true;
    case c10::TypeKind::OptionalType:
    case c10::TypeKind::ListType: return holds_tensors(*element.containedType(0));
    default: return false;
  }
}

// The value with each of its tensors converted, in lists (of lists) too; lists are new ones.
template <typename Convert>
IValue map_tensors(const IValue& value, const Convert& convert) {
  if (value.isTensor()) return convert(value.toTensor());
  if (!value.isList() || !holds_tensors(*value.toList().elementType())) return value;
  auto list = value.toList().copy();
  for (size_t i = 0; i < list.size(); i++) list.set(i, map_tensors(list.get(i), convert));
  return list;
}

template <typename Visit>
void each_tensor(const IValue& value, const Visit& visit) {
  map_tensors(value, [&](const Tensor& t) { return visit(t), t; });
}

class Aliases {
 public:
  Tensor to_cpu(const Tensor& t, bool written) {
    if (!on_npu(t)) return t;
    for (const auto& a : aliases_)
      if (a.npu.is_same(t)) return a.cpu;
    aliases_.push_back({t, view_over(storage_of(t), t), written});
    return aliases_.back().cpu;
  }

  // A CPU result as the NPU tensor it is or views; else a copy on `device`, if there is one.
  Tensor to_npu(const Tensor& c, const std::optional<c10::Device>& device) const {
    if (!c.defined() || c.device().type() != c10::kCPU) return c;
    for (const auto& a : aliases_)
      if (a.cpu.is_same(c)) return a.npu;
    for (const auto& a : aliases_)
      if (is_view(c, a)) return at::as_strided(a.npu, c.sizes(), c.strides(), c.storage_offset());
    return device ? copy(c, *device) : c;
  }

  // Gives the out= arguments that the kernel has resized their new shape and values.
  void finish() const {
    for (const auto& a : aliases_) {
      if (!a.written || a.cpu.sizes() == a.npu.sizes()) continue;
      const auto values = a.cpu.contiguous();
      a.npu.resize_(values.sizes());
      if (values.numel()) std::memmove(a.npu.data_ptr(), values.data_ptr(), values.nbytes());
    }
  }

 private:
  struct Alias {
    Tensor npu, cpu;
    bool written;
  };

  // One CPU storage for each NPU storage, so that kernels see which arguments share memory.
  c10::Storage storage_of(const Tensor& t) {
    for (const auto& a : aliases_)
      if (a.npu.storage().is_alias_of(t.storage())) return a.cpu.storage();
    auto& storage = t.storage();
    c10::DataPtr data(storage.mutable_data(), c10::Device(c10::kCPU));
    return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data),
                        c10::GetAllocator(c10::kCPU), /*resizable=*/true);
  }

  static Tensor view_over(c10::Storage storage, const Tensor& t) {
    auto result = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
    auto* impl = result.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.is_conj()) result._set_conj(true);
    if (t.is_neg()) result._set_neg(true);
    return result;
  }

  static bool is_view(const Tensor& c, const Alias& a) {
    return c.has_storage() && c.dtype() == a.npu.dtype() && c.storage().nbytes() &&
           c.storage().is_alias_of(a.cpu.storage()) &&
           c.storage().data() == a.npu.storage().data();
  }

  static Tensor copy(const Tensor& c, c10::Device device) {
    Tensor n = at::empty_strided(c.sizes(), c.strides(),
                                 c.options().device(device).pinned_memory(false));
    size_t elements = c.numel() ? 1 : 0;  // from the first to the last, gaps included
    for (int64_t d = 0; elements && d < c.dim(); d++) elements += (c.size(d) - 1) * c.stride(d);
    if (elements) std::memcpy(n.data_ptr(), c.data_ptr(), elements * c.element_size());
    return n;
  }

  std::vector<Alias> aliases_;
};

// An NPU tensor's memory for Python code; keeps the tensor.
inline Tensor host_view(const Tensor& t) {
  const auto options = at::TensorOptions().dtype(t.dtype()).device(c10::kCPU);
  if (t.numel() == 0) return at::empty_strided(t.sizes(), t.strides(), options);
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [t](void*) {}, options);
}

}  // namespace npu_emulator
