/* SPDX-License-Identifier: Apache-2.0
 *
 * The part of the CANN runtime (AscendCL) that has to do something when the device's memory is the
 * host's: allocation that is counted, copies, the current device, and queries with an answer.
 * Every other function of CANN is a stub that returns 0 (stubs.py). Everything here is synchronous,
 * so streams and events are tokens, and whatever is asked about is complete.
 *
 * NPU_EMULATOR_SOC, NPU_EMULATOR_DEVICES and NPU_EMULATOR_MEMORY_GIB say what is emulated.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEVICES 16
#define ALIGNMENT 512 /* of the runtime's allocator */
#define PADDING 64    /* kernels may read a little past the end */
#define ACL_ERROR_RT_INVALID_DEVICEID 107001
#define ACL_ERROR_RT_CONTEXT_NULL 107002
#define ACL_ERROR_RT_CAPTURED_STREAM 107030 /* "Not allow to synchronize captured-stream" */
#define ACL_ERROR_RT_MEMORY_ALLOCATION 207001
#define ACL_ERROR_RT_FEATURE_NOT_SUPPORT 207000

static _Thread_local int current_device = -1; /* none until a thread sets one */
static _Thread_local int capturing;
static _Thread_local const char *last_error = "npu_emulator: there is no CANN on this machine";
static atomic_long allocated[MAX_DEVICES];

static int fail(int code, const char *why) {
    last_error = why;
    return code;
}

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

static long total_memory(void) { return setting("NPU_EMULATOR_MEMORY_GIB", 4) << 30; }

/* Captures of ACL graphs, of which boxed.cpp tells. No host may wait for a device within one. */

int aclmdlRICaptureBegin(void *stream, int mode) {
    (void)stream, (void)mode;
    capturing = 1;
    return 0;
}

int aclmdlRICaptureEnd(void *stream, void **graph) {
    (void)stream, (void)graph;
    capturing = 0;
    return 0;
}

int aclmdlRICaptureGetInfo(void *stream, int *status, void **graph) {
    (void)stream;
    if (status) *status = 0; /* torch_npu would keep memory apart: here, the recorder does */
    if (graph) *graph = NULL;
    return 0;
}

static int wait_for_device(void) {
    return capturing ? fail(ACL_ERROR_RT_CAPTURED_STREAM,
                            "npu_emulator: the host waits for the device while an ACL graph is "
                            "captured")
                     : 0;
}

int aclrtSynchronizeDevice(void) { return wait_for_device(); }

int aclrtSynchronizeDeviceWithTimeout(int timeout) {
    (void)timeout;
    return wait_for_device();
}

int aclrtSynchronizeStream(void *stream) {
    (void)stream;
    return wait_for_device();
}

int aclrtSynchronizeStreamWithTimeout(void *stream, int timeout) {
    (void)stream, (void)timeout;
    return wait_for_device();
}

int aclrtSynchronizeEvent(void *event) {
    (void)event;
    return wait_for_device();
}

int aclrtSynchronizeEventWithTimeout(void *event, int timeout) {
    (void)event, (void)timeout;
    return wait_for_device();
}

/* Kernels of the device: whoever launches one has got past boxed.cpp. */

static int launch(void) {
    return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
                "npu_emulator: a kernel of the device is launched, and there is no device");
}

int aclopCompileAndExecute(void) { return launch(); }
int aclopCompileAndExecuteV2(void) { return launch(); }
int aclrtLaunchKernel(void) { return launch(); }
int aclrtLaunchKernelWithConfig(void) { return launch(); }
int aclrtLaunchKernelWithHostArgs(void) { return launch(); }

/* Devices */

const char *aclrtGetSocName(void) {
    const char *name = getenv("NPU_EMULATOR_SOC");
    return name ? name : "Ascend910B3";
}

static int device_slot(void) { return current_device < 0 ? 0 : current_device; }

static int devices(void) {
    long count = setting("NPU_EMULATOR_DEVICES", 2);
    return count < MAX_DEVICES ? (int)count : MAX_DEVICES;
}

int aclrtGetDeviceCount(unsigned *count) {
    *count = (unsigned)devices();
    return 0;
}

int aclrtSetDevice(int device) {
    if (device < 0 || device >= devices())
        return fail(ACL_ERROR_RT_INVALID_DEVICEID, "npu_emulator: there is no such device");
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

const char *aclGetRecentErrMsg(void) { return last_error; }

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

/* Memory. Before each allocation lies what it took, and from which device. */

struct allocation {
    unsigned long size;
    int device;
};

int aclrtMalloc(void **pointer, unsigned long size, int policy) {
    (void)policy;
    atomic_long *used = &allocated[device_slot()];
    char *memory;
    if (atomic_fetch_add(used, (long)size) + (long)size > total_memory() ||
        posix_memalign((void **)&memory, ALIGNMENT, ALIGNMENT + size + PADDING)) {
        atomic_fetch_sub(used, (long)size);
        return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "npu_emulator: the device has not that much memory left");
    }
    *(struct allocation *)memory = (struct allocation){size, device_slot()};
    *pointer = memory + ALIGNMENT;
    return 0;
}

int aclrtMallocAlign32(void **pointer, unsigned long size, int policy) {
    return aclrtMalloc(pointer, size, policy);
}

int aclrtFree(void *pointer) {
    if (!pointer) return 0;
    struct allocation *memory = (struct allocation *)((char *)pointer - ALIGNMENT);
    atomic_fetch_sub(&allocated[memory->device], (long)memory->size);
    free(memory);
    return 0;
}

int aclrtMallocHost(void **pointer, unsigned long size) {
    return posix_memalign(pointer, ALIGNMENT, size + PADDING) ? ACL_ERROR_RT_MEMORY_ALLOCATION : 0;
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

int aclrtMemcpyAsync(void *to, unsigned long room, const void *from, unsigned long size, int kind,
                     void *stream) {
    (void)room, (void)kind, (void)stream;
    memcpy(to, from, size);
    return 0;
}

int aclrtMemcpy(void *to, unsigned long room, const void *from, unsigned long size, int kind) {
    int refused = wait_for_device();
    return refused ? refused : aclrtMemcpyAsync(to, room, from, size, kind, NULL);
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
