/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of the CANN runtime (AscendCL) that has to do something when the device's memory is the
 * host's: allocation that is counted, copies, the current device, and queries with an answer.
 * Every other function of CANN is a stub that returns 0 (stubs.py). Everything here is synchronous,
 * so streams and events are tokens, and whatever is asked about is complete.
 *
 * NPU_EMULATOR_SOC, NPU_EMULATOR_DEVICES and NPU_EMULATOR_MEMORY_GIB say what is emulated.
 */
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEVICES 8
#define ALIGNMENT 512     /* of the runtime's allocator */
#define PADDING 64        /* kernels may read a little past the end */
#define ACL_ERROR_BAD_ALLOC 200000
#define ACL_ERROR_RT_CONTEXT_NULL 107002

static _Thread_local int current_device = -1; /* none until a thread sets one */
static atomic_long allocated[MAX_DEVICES];
/* The device of each allocation is not kept: a process of vLLM uses one. */

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

static long total_memory(void) { return setting("NPU_EMULATOR_MEMORY_GIB", 4) << 30; }

static int device_slot(void) { return current_device < 0 ? 0 : current_device % MAX_DEVICES; }

/* Devices */

const char *aclrtGetSocName(void) {
    const char *name = getenv("NPU_EMULATOR_SOC");
    return name ? name : "Ascend910B3";
}

int aclrtGetDeviceCount(unsigned *count) {
    *count = (unsigned)setting("NPU_EMULATOR_DEVICES", 2);
    return 0;
}

int aclrtSetDevice(int device) {
    current_device = device;
    return 0;
}

int aclrtGetDevice(int *device) {
    if (current_device < 0) return ACL_ERROR_RT_CONTEXT_NULL;
    *device = current_device;
    return 0;
}

int aclrtGetCurrentContext(void **context) {
    static char contexts[MAX_DEVICES];
    *context = &contexts[device_slot()];
    return 0;
}

const char *aclGetRecentErrMsg(void) { return "npu_emulator: there is no CANN on this machine"; }

unsigned long aclGetCompileoptSize(int option) {
    (void)option;
    return 16;
}

int aclGetCompileopt(int option, char *value, unsigned long size) {
    (void)option;
    if (size) {
        memset(value, 0, size);
        value[0] = '0';
    }
    return 0;
}

/* Memory */

static int take(void **pointer, unsigned long size) {
    atomic_long *used = &allocated[device_slot()];
    if (atomic_load(used) + (long)size > total_memory()) return ACL_ERROR_BAD_ALLOC;
    if (posix_memalign(pointer, ALIGNMENT, size + PADDING)) return ACL_ERROR_BAD_ALLOC;
    atomic_fetch_add(used, (long)malloc_usable_size(*pointer));
    return 0;
}

int aclrtMalloc(void **pointer, unsigned long size, int policy) {
    (void)policy;
    return take(pointer, size);
}

int aclrtMallocAlign32(void **pointer, unsigned long size, int policy) {
    (void)policy;
    return take(pointer, size);
}

int aclrtFree(void *pointer) {
    atomic_fetch_sub(&allocated[device_slot()], (long)malloc_usable_size(pointer));
    free(pointer);
    return 0;
}

int aclrtMallocHost(void **pointer, unsigned long size) {
    return posix_memalign(pointer, ALIGNMENT, size + PADDING) ? ACL_ERROR_BAD_ALLOC : 0;
}

int aclrtMallocHostWithCfg(void **pointer, unsigned long size, void *configuration) {
    (void)configuration;
    return aclrtMallocHost(pointer, size);
}

int aclrtFreeHost(void *pointer) {
    free(pointer);
    return 0;
}

int aclrtGetMemInfo(int kind, unsigned long *available, unsigned long *total) {
    (void)kind;
    *total = (unsigned long)total_memory();
    *available = *total - (unsigned long)atomic_load(&allocated[device_slot()]);
    return 0;
}

int aclrtMemcpy(void *to, unsigned long room, const void *from, unsigned long size, int kind) {
    (void)room, (void)kind;
    memcpy(to, from, size);
    return 0;
}

int aclrtMemcpyAsync(void *to, unsigned long room, const void *from, unsigned long size, int kind,
                     void *stream) {
    (void)stream;
    return aclrtMemcpy(to, room, from, size, kind);
}

int aclrtMemset(void *to, unsigned long room, int value, unsigned long size) {
    (void)room;
    memset(to, value, size);
    return 0;
}

int aclrtMemsetAsync(void *to, unsigned long room, int value, unsigned long size, void *stream) {
    (void)stream;
    return aclrtMemset(to, room, value, size);
}

/* Streams and events: tokens, always complete */

static int token(void **handle) {
    *handle = malloc(8);
    return 0;
}

int aclrtCreateStreamWithConfig(void **stream, unsigned priority, unsigned flags) {
    (void)priority, (void)flags;
    return token(stream);
}

int aclrtCreateEventWithFlag(void **event, unsigned flags) {
    (void)flags;
    return token(event);
}

int aclrtCreateEventExWithFlag(void **event, unsigned flags) {
    (void)flags;
    return token(event);
}

int aclrtQueryEventStatus(void *event, int *status) {
    (void)event;
    *status = 1; /* ACL_EVENT_RECORDED_STATUS_COMPLETE */
    return 0;
}

int aclrtQueryEventRecordedStatus(void *event, int *status) {
    return aclrtQueryEventStatus(event, status);
}

int aclrtQueryEventWaitStatus(void *event, int *status) {
    (void)event;
    *status = 0; /* ACL_EVENT_WAIT_STATUS_COMPLETE */
    return 0;
}

int aclrtStreamQuery(void *stream, int *status) {
    (void)stream;
    *status = 0; /* ACL_STREAM_STATUS_COMPLETE */
    return 0;
}

int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) {
    (void)start, (void)end;
    *milliseconds = 0;
    return 0;
}

int aclmdlRICaptureGetInfo(void *stream, int *status, void **graph) {
    (void)stream;
    if (status) *status = 0; /* not capturing: the emulator records graphs itself */
    if (graph) *graph = NULL;
    return 0;
}
