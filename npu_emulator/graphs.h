// SPDX-License-Identifier: Apache-2.0
//
// ACL graphs: the calls of a capture, which a replay runs again on the same memory; and what a
// capture does not allow. A capture, as an update and a held replay, belongs to its thread.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "aliases.h"

namespace npu_emulator {

using Stack = torch::jit::Stack;
using Values = std::vector<IValue>;

struct Call {
  c10::OperatorHandle op;
  Values arguments, results;
};
using Calls = std::vector<std::shared_ptr<Call>>;

inline std::mutex recording;  // of the two below
inline std::map<long, Calls> graphs, groups;
inline thread_local long capturing = -1, updating = -1;
inline thread_local size_t group_start = 0, update_index = 0;
inline thread_local bool holding = false;  // a replay waits for its updates

inline std::string full_name(const c10::FunctionSchema& schema) {
  const auto& overload = schema.overload_name();
  return overload.empty() ? schema.name() : schema.name() + "." + overload;
}

inline bool in_namespace(const std::string& name, const char* space) {
  return name.rfind(space, 0) == 0;
}

// What may be updated, or asked before an update: attention, and not what prepares it.
inline bool is_planning(const std::string& name) {
  return name.find("workspace") != std::string::npos;
}
inline bool is_task(const std::string& name) {
  return !in_namespace(name, "aten::") && !is_planning(name);
}

// ---- What makes the host wait, by the source of torch_npu and op-plugin 26.0.0

// A copy between host and device, unless it is from or to pinned memory and does not block.
inline bool is_blocking_copy(const c10::FunctionSchema& schema, const Values& values) {
  bool device = false, host = false, pinned = true, non_blocking = false;
  for (size_t i = 0; i < values.size(); i++) {
    if (values[i].isTensor() && values[i].toTensor().defined()) {
      const auto& t = values[i].toTensor();
      if (on_npu(t)) device = true;
      else host = true, pinned &= t.is_pinned();
    } else if (values[i].isDevice()) {  // the new tensor's; torch_npu pins it where that helps
      (values[i].toDevice().type() == kNpu ? device : host) = true;
    } else if (schema.arguments()[i].name() == "non_blocking" && values[i].isBool()) {
      non_blocking = values[i].toBool();
    }
  }
  return device && host && !(pinned && non_blocking);
}

// An index that is a mask, whose number of elements the host has to know, or that has to be copied.
inline bool has_waiting_index(const Values& values) {
  bool found = false;
  for (const auto& value : values)
    if (value.isList())
      each_tensor(value, [&](const Tensor& t) {
        found |= t.defined() && (!on_npu(t) || t.dtype() == at::kBool || t.dtype() == at::kByte);
      });
  return found;
}

// Whether the kernel makes the host wait for the device.
inline bool synchronises(const c10::FunctionSchema& schema, const Values& values) {
  static const std::unordered_set<std::string> waiting = {  // by names without overloads
      "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal",
      "aten::nonzero", "aten::masked_select", "aten::bincount", "aten::histc", "aten::_unique",
      "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::index_fill_",
      "aten::index_fill", "aten::unique_dim_consecutive"};
  static const std::unordered_set<std::string> copying = {
      "aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize"};
  static const std::unordered_set<std::string> indexing = {
      "aten::index", "aten::_unsafe_index", "aten::index_put_", "aten::index_put",
      "aten::_index_put_impl_"};
  const auto& name = schema.name();
  if (copying.count(name)) return is_blocking_copy(schema, values);
  if (indexing.count(name)) return has_waiting_index(values);
  if (name == "aten::where") return values.size() == 1;  // the indices of what is true
  if (name == "aten::one_hot") return values[1].toInt() < 0;  // looks for the largest class
  if (name == "aten::repeat_interleave")
    return schema.overload_name() != "self_int" && values.back().isNone();  // no output_size
  return waiting.count(name);
}

// ---- Captures, task groups and their updates

inline void capture_begin(long id) {
  TORCH_CHECK(capturing < 0, "npu_emulator: an ACL graph is captured already");
  std::lock_guard<std::mutex> lock(recording);
  graphs[id].clear();
  capturing = id;
  aclmdlRICaptureBegin(nullptr, ACL_MODEL_RI_CAPTURE_MODE_GLOBAL);  // no waiting, see runtime.c
}

inline size_t capture_end() {
  aclmdlRICaptureEnd(nullptr, nullptr);
  const long id = std::exchange(capturing, -1);
  std::lock_guard<std::mutex> lock(recording);
  return graphs[id].size();
}

inline void check_order(const std::string& name, bool syncs) {
  TORCH_CHECK(capturing < 0 || !syncs, "npu_emulator: ", name,
              " makes the host wait for the device, or copies from pageable host memory, while an "
              "ACL graph is captured; a replay would not see what the host sees");
  TORCH_CHECK(!holding || updating >= 0 || is_planning(name), "npu_emulator: ", name,
              " is called while the replay of an ACL graph waits for task updates; on a device it "
              "would run after the replay, here it would run before");
}

inline void record(const c10::OperatorHandle& op, const Values& arguments, Values results) {
  if (capturing < 0) return;
  auto call = std::make_shared<Call>(Call{op, arguments, std::move(results)});
  std::lock_guard<std::mutex> lock(recording);
  graphs[capturing].push_back(std::move(call));
}

inline Calls calls_of(long id) {
  std::lock_guard<std::mutex> lock(recording);
  return graphs.at(id);
}

inline void group_begin() {
  TORCH_CHECK(capturing >= 0, "npu_emulator: a task group begins outside a capture");
  group_start = calls_of(capturing).size();
}

inline long group_end() {
  static long next = 1;
  TORCH_CHECK(capturing >= 0, "npu_emulator: a task group ends outside a capture");
  Calls tasks;
  std::lock_guard<std::mutex> lock(recording);
  const auto& recorded = graphs[capturing];
  for (size_t i = group_start; i < recorded.size(); i++)
    if (is_task(recorded[i]->op.schema().name())) tasks.push_back(recorded[i]);
  groups[next] = std::move(tasks);
  return next++;
}

inline void update_begin(long group) {
  std::lock_guard<std::mutex> lock(recording);
  TORCH_CHECK(groups.count(group), "npu_emulator: there is no task group ", group);
  updating = group, update_index = 0;
}

inline void update_end() {
  const long group = std::exchange(updating, -1);
  std::lock_guard<std::mutex> lock(recording);
  TORCH_CHECK(update_index == groups[group].size(), "npu_emulator: the update of a task group calls ",
              update_index, " of its ", groups[group].size(), " operators");
}

// Within an update, gives the captured call its new arguments in the place of running it.
inline bool update_task(const c10::FunctionSchema& schema, Stack* stack, const Values& arguments) {
  if (updating < 0 || !is_task(schema.name())) return false;
  std::lock_guard<std::mutex> lock(recording);
  const auto& group = groups[updating];
  TORCH_CHECK(update_index < group.size() && group[update_index]->op.schema() == schema,
              "npu_emulator: the update of a task group calls ", full_name(schema),
              " where the capture called another operator, or none");
  auto& call = *group[update_index++];
  call.arguments = arguments;
  stack->erase(stack->end() - arguments.size(), stack->end());
  stack->insert(stack->end(), call.results.begin(), call.results.end());
  return true;
}

inline void forget_graph(long id, const std::vector<long>& its_groups) {
  Calls dropped;  // tensors are freed after the lock is
  std::lock_guard<std::mutex> lock(recording);
  for (const long group : its_groups) groups.erase(group);
  if (graphs.count(id)) dropped = std::move(graphs[id]), graphs.erase(id);
}

}  // namespace npu_emulator
