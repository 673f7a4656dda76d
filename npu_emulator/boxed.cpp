// SPDX-License-Identifier: Apache-2.0
//
// One boxed kernel for every operator of an NPU whose memory is the host's.
//
// `override_operator` puts it in the place of torch_npu's kernel on the PrivateUse1 key. A call then
// goes through four steps: the chip's table is asked (in Python, once for each new signature), the
// NPU tensors are aliased as CPU tensors over the same memory, the operator runs with its CPU
// kernel, and its results become NPU tensors again; in-place results, out= arguments and views stay
// what they were. While an ACL graph is captured, calls are recorded too, and a replay runs them
// again on the same memory.

#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "torch_npu/csrc/core/NPUStorageImpl.h"

namespace py = pybind11;
using at::Tensor;
using c10::IValue;
using Stack = torch::jit::Stack;
using Values = std::vector<IValue>;

namespace {

constexpr auto kNpu = c10::DeviceType::PrivateUse1;

bool on_npu(const Tensor& t) { return t.defined() && t.device().type() == kNpu; }

std::string full_name(const c10::FunctionSchema& schema) {
  const auto& overload = schema.overload_name();
  return overload.empty() ? schema.name() : schema.name() + "." + overload;
}

bool in_namespace(const std::string& name, const char* space) { return name.rfind(space, 0) == 0; }

// ---- NPU tensors as CPU tensors over the same memory, and back

struct Alias {
  Tensor npu, cpu;
  bool grows;  // an empty out= argument, given its size by the kernel
};

Tensor alias_of(const Tensor& t) {
  const auto options = at::TensorOptions().dtype(t.dtype()).device(c10::kCPU);
  if (t.numel() == 0 || t.data_ptr() == nullptr)
    return at::empty_strided(t.sizes(), t.strides(), options);
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), [](void*) {}, options);
}

size_t span_bytes(const Tensor& t) {
  size_t last = 0;
  for (int64_t d = 0; d < t.dim(); d++) last += (t.size(d) - 1) * t.stride(d);
  return (last + 1) * t.element_size();
}

class Aliases {
 public:
  Tensor to_cpu(const Tensor& t, bool written) {
    if (!on_npu(t)) return t;
    for (const auto& a : aliases_)
      if (a.npu.is_same(t)) return a.cpu;
    const bool grows = written && t.numel() == 0;
    aliases_.push_back({t, alias_of(t), grows});
    return aliases_.back().cpu;
  }

  // A CPU result as the NPU tensor it is or views; else a new NPU tensor, unless it stays on the host.
  Tensor to_npu(const Tensor& c, bool stays) const {
    if (!c.defined() || c.device().type() != c10::kCPU) return c;
    for (const auto& a : aliases_)
      if (a.cpu.is_same(c)) return a.npu;
    for (const auto& a : aliases_)
      if (is_view(c, a)) return view(c, a);
    return stays ? c : copy(c);
  }

  void finish_growing() const {
    for (const auto& a : aliases_) {
      if (!a.grows || a.cpu.numel() == 0) continue;
      a.npu.resize_(a.cpu.sizes());
      std::memcpy(a.npu.data_ptr(), a.cpu.contiguous().data_ptr(), a.cpu.nbytes());
    }
  }

 private:
  static bool is_view(const Tensor& c, const Alias& a) {
    return !a.grows && a.npu.numel() && c.has_storage() && c.dtype() == a.npu.dtype() &&
           c.storage().unsafeGetStorageImpl() == a.cpu.storage().unsafeGetStorageImpl();
  }

  static Tensor view(const Tensor& c, const Alias& a) {
    const auto bytes = static_cast<char*>(c.data_ptr()) - static_cast<char*>(a.cpu.data_ptr());
    const auto offset = a.npu.storage_offset() + bytes / (int64_t)a.npu.element_size();
    return at::as_strided(a.npu, c.sizes(), c.strides(), offset);
  }

  static Tensor copy(const Tensor& c) {
    const auto options = c.options().device(c10::Device(kNpu, -1)).pinned_memory(false);
    Tensor n = at::empty_strided(c.sizes(), c.strides(), options);
    if (c.numel()) std::memcpy(n.data_ptr(), c.data_ptr(), span_bytes(c));
    return n;
  }

  std::vector<Alias> aliases_;
};

// The CPU generator that stands for an NPU generator: same seed, its own sequence.
IValue cpu_generator(const at::Generator& npu) {
  struct Twin {
    uint64_t seed;
    at::Generator cpu;
  };
  static std::unordered_map<void*, Twin> twins;
  const auto seed = npu.current_seed();
  auto [it, created] = twins.try_emplace(npu.unsafeGetGeneratorImpl());
  if (created || it->second.seed != seed)
    it->second = {seed, at::detail::createCPUGenerator(seed)};
  return it->second.cpu;
}

template <typename Convert>
IValue map_tensors(const IValue& value, const Convert& convert) {
  if (value.isTensor()) return convert(value.toTensor());
  if (value.isTensorList()) {
    auto list = value.toTensorVector();
    for (auto& t : list) t = convert(t);
    return c10::List<Tensor>(list);
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& t : value.toOptionalTensorList().vec())
      list.push_back(t ? std::optional<Tensor>(convert(*t)) : std::nullopt);
    return list;
  }
  return value;
}

// Runs the operator with its CPU kernel; arguments and results on the stack are NPU tensors.
void run(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), base = stack->size() - count;
  Aliases aliases;
  bool stays = false;  // results of a call that names a host device stay on the host
  for (size_t i = 0; i < count; i++) {
    IValue& value = (*stack)[base + i];
    const auto& argument = schema.arguments()[i];
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    if (value.isDevice()) {
      stays = value.toDevice().type() != kNpu;
      if (!stays) value = c10::Device(c10::kCPU);
    } else if (value.isGenerator() && value.toGenerator().device().type() != c10::kCPU) {
      value = cpu_generator(value.toGenerator());
    } else if (argument.name() == "pin_memory" && value.isBool()) {
      value = false;
    } else {
      value = map_tensors(value, [&](const Tensor& t) { return aliases.to_cpu(t, written); });
    }
  }
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.callBoxed(stack);
  }
  aliases.finish_growing();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    IValue& value = (*stack)[i];
    if (in_namespace(schema.name(), "c10d::") && value.isCustomClass())
      value.toCustomClass<c10d::Work>()->wait();  // a replay has nobody who waits
    value = map_tensors(value, [&](const Tensor& t) { return aliases.to_npu(t, stays); });
  }
}

// The memory format that torch_npu keeps for a tensor; the bytes themselves stay in order.
aclFormat& format_of(const Tensor& t) {
  auto* storage = static_cast<torch_npu::NPUStorageImpl*>(t.storage().unsafeGetStorageImpl());
  return storage->npu_desc_.npu_format_;
}

// ---- The chip's table, asked once for each signature; and what was called

py::object& checker() {
  static auto* object = new py::object();  // never destroyed: the interpreter may be gone by then
  return *object;
}
std::unordered_set<std::string> seen;
std::map<std::string, long> calls;

void append(std::string& key, const Tensor& t) {
  if (!t.defined()) return key.append("-"), void();
  key.append({(char)t.scalar_type(), (char)t.device().type(), (char)t.is_contiguous()});
  if (on_npu(t) && t.has_storage()) key.push_back((char)format_of(t));
  key.append((const char*)t.sizes().data(), t.dim() * sizeof(int64_t));
}

std::string signature(const std::string& name, const IValue* values, size_t count) {
  std::string key = name;
  for (size_t i = 0; i < count; i++) {
    key.push_back('|');
    if (values[i].isTensor() || values[i].isTensorList() || values[i].isOptionalTensorList()) {
      map_tensors(values[i], [&](const Tensor& t) { return append(key, t), t; });
    } else if (values[i].isInt()) {
      key.append(std::to_string(values[i].toInt()));
    } else if (values[i].isBool() || values[i].isDouble() || values[i].isString() ||
               values[i].isIntList() || values[i].isDevice()) {
      key.append(c10::str(values[i]));
    }
  }
  return key;
}

py::object as_python(const IValue& value) {
  if (value.isCustomClass() || value.isGenerator()) return py::none();
  return torch::jit::toPyObject(value);
}

py::tuple as_python(const IValue* values, size_t count) {
  py::tuple tuple(count);
  for (size_t i = 0; i < count; i++) tuple[i] = as_python(values[i]);
  return tuple;
}

// ---- ACL graphs: the calls of a capture, run again by a replay

struct Call {
  c10::OperatorHandle op;
  Values arguments, results;
};
using Calls = std::vector<std::shared_ptr<Call>>;

std::map<long, Calls> graphs, groups;
long capturing = -1, updating = -1, next_group = 1;
size_t group_start = 0, update_index = 0;
bool replaying = false;

Values copied(const IValue* values, size_t count) {
  Values result;
  for (size_t i = 0; i < count; i++)
    result.push_back(map_tensors(values[i], [](const Tensor& t) { return t; }));
  return result;
}

bool is_task(const std::string& name) {  // what a task group may hold: attention, not bookkeeping
  return !in_namespace(name, "aten::") && name.find("workspace") == std::string::npos;
}

// Whether the call makes the host wait for the device, or bakes host values into a graph.
bool synchronises(const c10::FunctionSchema& schema, const IValue* values, size_t count) {
  static const std::unordered_set<std::string> waiting = {
      "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select",
      "aten::is_nonzero", "aten::equal", "aten::_unique2", "aten::repeat_interleave.Tensor"};
  const auto name = full_name(schema);
  if (waiting.count(name)) return true;
  if (in_namespace(name, "aten::index")) {  // a boolean mask has a size that the host must know
    for (size_t i = 0; i < count; i++)
      if (values[i].isOptionalTensorList())
        for (const std::optional<Tensor>& t : values[i].toOptionalTensorList().vec())
          if (t && t->defined() && (t->dtype() == at::kBool || t->dtype() == at::kByte)) return true;
  }
  if (name != "aten::copy_" && name != "aten::_to_copy" && name != "aten::_copy_from") return false;
  bool device = false, host = false, pinned = true, non_blocking = false;
  for (size_t i = 0; i < count; i++) {
    if (values[i].isTensor() && values[i].toTensor().defined()) {
      const auto& t = values[i].toTensor();
      const bool scalar = t.dim() == 0;  // goes with the call, not through memory
      if (on_npu(t)) device = true;
      else if (!scalar) host = true, pinned &= t.is_pinned();
    } else if (values[i].isDevice() && values[i].toDevice().type() == c10::kCPU) {
      host = true, pinned = false;  // the result is a new, pageable tensor
    } else if (schema.arguments()[i].name() == "non_blocking" && values[i].isBool()) {
      non_blocking = values[i].toBool();
    }
  }
  return device && host && !(pinned && non_blocking);
}

bool update_task(const std::string& name, Stack* stack, Values arguments) {
  if (updating < 0 || !is_task(name)) return false;
  auto& group = groups[updating];
  TORCH_CHECK(update_index < group.size() && group[update_index]->op.schema().name() == name,
              "npu_emulator: the update of a task group calls ", name,
              " where the capture called another operator");
  auto& call = *group[update_index++];
  call.arguments = std::move(arguments);
  stack->erase(stack->end() - call.op.schema().arguments().size(), stack->end());
  for (const auto& value : copied(call.results.data(), call.results.size())) stack->push_back(value);
  return true;
}

void emulate(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const auto name = full_name(schema);
  const size_t count = schema.arguments().size();
  const IValue* arguments = stack->data() + stack->size() - count;
  const bool fresh = checker() && seen.insert(signature(name, arguments, count)).second;
  const bool syncs = synchronises(schema, arguments, count);
  const Values kept = fresh || capturing >= 0 || updating >= 0 ? copied(arguments, count) : Values();
  const int64_t format = name == "npu::npu_format_cast" ? arguments[1].toInt() : -1;
  calls[name]++;
  if (syncs) calls["synchronisations"]++;
  if (fresh) {
    py::gil_scoped_acquire gil;
    checker().attr("call")(name, as_python(kept.data(), count));
  }
  if (update_task(schema.name(), stack, kept)) return;
  TORCH_CHECK(capturing < 0 || !syncs, "npu_emulator: ", name,
              " makes the host wait for the device, or copies from pageable host memory, while an "
              "ACL graph is captured; a replay would not see what the host sees");
  run(op, stack);
  const size_t returned = schema.returns().size();
  const IValue* results = stack->data() + stack->size() - returned;
  if (format >= 0) format_of(results[0].toTensor()) = (aclFormat)format;
  if (fresh) {
    py::gil_scoped_acquire gil;
    checker().attr("result")(name, as_python(kept.data(), count), as_python(results, returned));
  }
  if (capturing >= 0)
    graphs[capturing].push_back(
        std::make_shared<Call>(Call{op, kept, copied(results, returned)}));
}

void copy_result(const Tensor& to, const Tensor& from) {
  if (!on_npu(to) || !on_npu(from) || to.numel() == 0 || to.data_ptr() == from.data_ptr()) return;
  alias_of(to).copy_(alias_of(from));
}

void replay(long id) {
  c10::InferenceMode inference(true);
  for (const auto& call : graphs.at(id)) {
    Stack stack = copied(call->arguments.data(), call->arguments.size());
    calls[full_name(call->op.schema())]++;
    run(call->op, &stack);
    for (size_t i = 0; i < call->results.size(); i++) {
      const auto &to = call->results[i], &from = stack[i];
      if (to.isTensor()) copy_result(to.toTensor(), from.toTensor());
      if (!to.isTensorList()) continue;
      const auto many = to.toTensorVector(), fresh = from.toTensorVector();
      for (size_t j = 0; j < many.size(); j++) copy_result(many[j], fresh[j]);
    }
  }
}

long end_group() {
  const auto& calls_so_far = graphs[capturing];
  auto& group = groups[next_group];
  for (size_t i = group_start; i < calls_so_far.size(); i++)
    if (is_task(calls_so_far[i]->op.schema().name())) group.push_back(calls_so_far[i]);
  return next_group++;
}

void override_operator(const std::string& space, const std::string& name) {
  static std::map<std::string, torch::Library*> libraries;  // never destroyed, as checker()
  auto& library = libraries[space];
  if (!library)
    library = new torch::Library(torch::Library::IMPL, space, c10::DispatchKey::PrivateUse1,
                                 __FILE__, __LINE__);
  library->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&emulate>());
}

}  // namespace

PYBIND11_MODULE(_boxed, m) {
  m.def("override_operator", &override_operator);
  m.def("set_checker", [](py::object object) { checker() = std::move(object); });
  m.def("forget_signatures", [] { seen.clear(); });
  m.def("calls", [] { return calls; });
  m.def("host_view", &alias_of);
  m.def("capture_begin", [](long id) { capturing = id; });
  m.def("capture_end", [] {
    const long id = std::exchange(capturing, -1);
    return graphs[id].size();
  });
  m.def("group_begin", [] { group_start = graphs[capturing].size(); });
  m.def("group_end", &end_group);
  m.def("update_begin", [](long group) { updating = group, update_index = 0; });
  m.def("update_end", [] { updating = -1; });
  m.def("replay", &replay, py::call_guard<py::gil_scoped_release>());
  m.def("forget_graph", [](long id) { graphs.erase(id); });
}
