// SPDX-License-Identifier: Apache-2.0
//
// One boxed kernel for every operator of an NPU whose memory is the host's.
//
// `override_operator` puts it in the place of torch_npu's kernel on the PrivateUse1 key. A call then
// goes through four steps: the chip's table is asked (in Python, until a call of the same signature
// has passed), the NPU tensors are aliased as CPU tensors over the same memory, the operator runs
// with its CPU kernel, and its results become NPU tensors again; in-place results, out= arguments
// and views stay what they were. While an ACL graph is captured, calls are recorded (graphs.h).

#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include <map>
#include <string>
#include <unordered_set>

#include "aliases.h"
#include "graphs.h"
#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"

namespace py = pybind11;

namespace npu_emulator {
namespace {

// ---- Running an operator with its CPU kernel

// Stands for an NPU generator in one call: its numbers follow from the seed and the offset, which
// moves on. So seeding again, and restoring a state, repeats them as on a device.
IValue cpu_generator(at::Generator npu) {
  std::lock_guard<std::mutex> lock(npu.mutex());
  const uint64_t offset = npu.get_offset();
  npu.set_offset(offset + 4);  // torch_npu takes multiples of 4
  uint64_t mixed = npu.current_seed() + (offset + 1) * 0x9e3779b97f4a7c15;  // splitmix64
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  return at::Generator(at::detail::createCPUGenerator(mixed ^ (mixed >> 31)));
}

c10::Device current_device() {
  return c10::Device(kNpu, c10::impl::VirtualGuardImpl(kNpu).getDevice().index());
}

// The device of the results: a device argument, else that of the first NPU tensor; none for the host.
std::optional<c10::Device> home(const IValue* values, size_t count) {
  std::optional<c10::Device> named, found;
  for (size_t i = 0; i < count; i++) {
    if (values[i].isDevice()) named = values[i].toDevice();
    each_tensor(values[i], [&](const Tensor& t) {
      if (!found && on_npu(t)) found = t.device();
    });
  }
  if (!named) return found ? found : current_device();
  if (named->type() != kNpu) return std::nullopt;
  return named->has_index() ? named : current_device();
}

IValue on_cpu(const c10::Argument& argument, const IValue& value, Aliases& aliases,
              const std::optional<c10::Device>& device) {
  if (value.isDevice() && device) return c10::Device(c10::kCPU);
  if (value.isGenerator() && value.toGenerator().device().type() == kNpu)
    return cpu_generator(value.toGenerator());
  if (argument.name() == "generator" && value.isNone() && device)
    return cpu_generator(at_npu::detail::getDefaultNPUGenerator(device->index()));
  if (argument.name() == "pin_memory" && value.isBool()) return false;
  const bool written = argument.alias_info() && argument.alias_info()->isWrite();
  return map_tensors(value, [&](const Tensor& t) { return aliases.to_cpu(t, written); });
}

// Arguments and results on the stack are NPU tensors.
void run(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size(), base = stack->size() - count;
  const auto device = home(stack->data() + base, count);
  Aliases aliases;
  for (size_t i = 0; i < count; i++) {
    IValue& value = (*stack)[base + i];
    value = on_cpu(schema.arguments()[i], value, aliases, device);
  }
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    op.callBoxed(stack);
  }
  aliases.finish();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    IValue& value = (*stack)[i];
    if (in_namespace(schema.name(), "c10d::") && value.isCustomClass())
      value.toCustomClass<c10d::Work>()->wait();  // a replay has nobody who waits
    value = map_tensors(value, [&](const Tensor& t) { return aliases.to_npu(t, device); });
  }
}

// ---- The chip's table, asked until a signature has passed; and what was called

py::object& checker() {
  static auto* object = new py::object();  // never destroyed: the interpreter may be gone by then
  return *object;
}
std::mutex counting;  // of the three below; held neither while Python nor while a kernel runs
std::unordered_set<std::string> passed;
std::map<std::string, long> calls, waits;

void append(std::string& key, const Tensor& t) {
  if (!t.defined()) return key.append("-"), void();
  const bool npu = on_npu(t);
  key.append({(char)t.scalar_type(), (char)t.device().type(), (char)t.device().index(),
              (char)t.is_contiguous(), npu && t.has_storage() ? (char)format_of(t) : '\0'});
  key.append((const char*)t.sizes().data(), t.dim() * sizeof(int64_t));
  key.push_back(',');
}

std::string signature(const std::string& name, const IValue* values, size_t count) {
  std::string key = name;
  for (size_t i = 0; i < count; i++) {
    key.push_back('|');
    const IValue& value = values[i];
    if (value.isTensor() || (value.isList() && holds_tensors(*value.toList().elementType())))
      each_tensor(value, [&](const Tensor& t) { append(key, t); });
    else if (!value.isCustomClass() && !value.isGenerator())
      key.append(c10::str(value));
  }
  return key;
}

py::tuple as_python(const IValue* values, size_t count) {
  py::tuple tuple(count);
  for (size_t i = 0; i < count; i++)
    tuple[i] = values[i].isCustomClass() || values[i].isGenerator()
                   ? py::none()
                   : torch::jit::toPyObject(values[i]);
  return tuple;
}

void count_call(const std::string& name, bool waits_for_device) {
  std::lock_guard<std::mutex> lock(counting);
  calls[name]++;
  if (waits_for_device) waits[name]++;
}

// ---- The kernel

void emulate(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const auto name = full_name(schema);
  const size_t count = schema.arguments().size(), returned = schema.returns().size();
  const Values kept(stack->end() - count, stack->end());
  const std::string key = checker() ? signature(name, kept.data(), count) : "";
  bool fresh = false;
  if (checker()) {
    std::lock_guard<std::mutex> lock(counting);
    fresh = !passed.count(key);
  }
  const bool syncs = synchronises(schema, kept);
  count_call(name, syncs);
  if (fresh) {
    py::gil_scoped_acquire gil;
    checker().attr("call")(name, as_python(kept.data(), count));
  }
  if (update_task(schema, stack, kept)) return;
  check_order(name, syncs);
  run(op, stack);
  const IValue* results = stack->data() + stack->size() - returned;
  if (name == "npu::npu_format_cast")
    format_of(results[0].toTensor()) = (aclFormat)kept[1].toInt();
  if (fresh) {
    {
      py::gil_scoped_acquire gil;
      checker().attr("result")(name, as_python(kept.data(), count), as_python(results, returned));
    }
    std::lock_guard<std::mutex> lock(counting);
    passed.insert(key);
  }
  record(op, kept, Values(results, results + returned));
}

void override_operator(const std::string& space, const std::string& name) {
  static std::map<std::string, torch::Library*> libraries;  // never destroyed, as checker()
  auto& library = libraries[space];
  if (!library)
    library = new torch::Library(torch::Library::IMPL, space, c10::DispatchKey::PrivateUse1,
                                 __FILE__, __LINE__);
  library->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&emulate>());
}

// ---- Replays

void copy_result(const Tensor& to, const Tensor& from) {
  if (on_npu(to) && on_npu(from) && to.numel() && to.data_ptr() != from.data_ptr())
    host_view(to).copy_(host_view(from));
}

void run_again(const Call& call) {
  Stack stack = call.arguments;
  count_call(full_name(call.op.schema()), false);
  run(call.op, &stack);
  for (size_t i = 0; i < call.results.size(); i++) {
    std::vector<Tensor> fresh;
    each_tensor(stack[i], [&](const Tensor& t) { fresh.push_back(t); });
    size_t next = 0;
    each_tensor(call.results[i], [&](const Tensor& t) { copy_result(t, fresh[next++]); });
  }
}

void replay(long id) {
  c10::InferenceMode inference(true);
  for (const auto& call : calls_of(id)) run_again(*call);
}

}  // namespace
}  // namespace npu_emulator

PYBIND11_MODULE(_boxed, m) {
  using namespace npu_emulator;
  m.def("override_operator", &override_operator);
  m.def("set_checker", [](py::object object) { checker() = std::move(object); });
  m.def("calls", [] { return std::lock_guard<std::mutex>(counting), calls; });
  m.def("waits", [] { return std::lock_guard<std::mutex>(counting), waits; });
  m.def("forget_calls", [] {
    std::lock_guard<std::mutex> lock(counting);
    calls.clear(), waits.clear(), passed.clear();
  });
  m.def("host_view", &host_view);
  m.def("capture_begin", &capture_begin);
  m.def("capture_end", &capture_end);
  m.def("is_capturing", [] { return capturing >= 0; });
  m.def("group_begin", &group_begin);
  m.def("group_end", &group_end);
  m.def("update_begin", &update_begin);
  m.def("update_end", &update_end);
  m.def("hold", [](bool held) { holding = held; });
  m.def("replay", &replay, py::call_guard<py::gil_scoped_release>());
  m.def("forget_graph", &forget_graph);
}
