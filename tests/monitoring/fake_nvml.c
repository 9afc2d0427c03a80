/* A libnvidia-ml.so.1 that answers from a file, so that tests take the real ctypes path.
 *
 * FAKE_NVML names the file; it is read anew at each call, once with FAKE_NVML_FIXED (for benchmarks). Its lines are `count N` and `DEVICE.NAME VALUE`; a value `!N`
 * answers with NVML's error N, a missing line with NVML_ERROR_NOT_SUPPORTED. Lists: `pid:bytes,…`, `pid:sm:time,…`.
 * `xids DEVICE:XID,…` are events, each of which is given once to each event set.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, XID_EVENT = 8 };
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { unsigned int version, sensor; int temperature; } temperature_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_t;
typedef struct { unsigned int pid; unsigned long long time; unsigned int sm, mem, enc, dec; } sample_t;
typedef struct { void *device; unsigned long long type, data; unsigned int gpu_instance, compute_instance; } event_t;
typedef struct { unsigned long long devices; int given; } event_set_t;

static int lookup(const char *key, char *value, size_t size) {
    static FILE *fixed = NULL;
    const char *path = getenv("FAKE_NVML");
    FILE *file = fixed ? fixed : path ? fopen(path, "r") : NULL;
    if (!file) return NOT_SUPPORTED;
    if (getenv("FAKE_NVML_FIXED")) fixed = file, rewind(file);
    char line[4096];
    int answer = NOT_SUPPORTED;
    size_t length = strlen(key);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) || line[length] != ' ') continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(value, size, "%s", line + length + 1);
        answer = value[0] == '!' ? atoi(value + 1) : SUCCESS;
        break;
    }
    if (file != fixed) fclose(file);
    return answer;
}

static int of(void *device, const char *name, char *value, size_t size) {
    char key[128];
    snprintf(key, sizeof key, "%d.%s", (int)((size_t)device - 1), name);
    return lookup(key, value, size);
}

static int number(void *device, const char *name, unsigned long long *out) {
    char value[256];
    int answer = of(device, name, value, sizeof value);
    if (answer == SUCCESS) *out = strtoull(value, NULL, 10);
    return answer;
}

static int small(void *device, const char *name, unsigned int *out) {
    unsigned long long value = 0;
    int answer = number(device, name, &value);
    if (answer == SUCCESS) *out = (unsigned int)value;
    return answer;
}

static int sessions = 0;

int nvmlInitWithFlags(unsigned int flags) {
    char value[64];
    int answer = lookup("init", value, sizeof value);
    (void)flags;
    if (answer != SUCCESS && answer != NOT_SUPPORTED) return answer;
    sessions++;
    return SUCCESS;
}

int nvmlShutdown(void) { return sessions > 0 ? (sessions--, SUCCESS) : UNINITIALIZED; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake"; }

int nvmlSystemGetDriverVersion(char *version, unsigned int size) { return lookup("driver", version, size); }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    char value[64];
    int answer = sessions > 0 ? lookup("count", value, sizeof value) : UNINITIALIZED;
    if (answer == SUCCESS) *count = (unsigned int)atoi(value);
    return answer;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    char value[64];
    *device = (void *)(size_t)(index + 1);
    int answer = of(*device, "handle", value, sizeof value);
    return answer == NOT_SUPPORTED ? SUCCESS : answer;
}

int nvmlDeviceGetName(void *d, char *name, unsigned int size) { return of(d, "name", name, size); }
int nvmlDeviceGetUUID(void *d, char *uuid, unsigned int size) { return of(d, "uuid", uuid, size); }
int nvmlDeviceGetPowerUsage(void *d, unsigned int *mw) { return small(d, "power", mw); }
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj) { return number(d, "energy", mj); }
int nvmlDeviceGetClockInfo(void *d, unsigned int type, unsigned int *mhz) { return small(d, type == 1 ? "sm_clock" : "memory_clock", mhz); }
int nvmlDeviceGetUtilizationRates(void *d, utilization_t *u) { u->memory = 0; return small(d, "utilization", &u->gpu); }
int nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned int *mw) { return small(d, "power_limit", mw); }
int nvmlDeviceGetMigMode(void *d, unsigned int *current, unsigned int *pending) { *pending = 0; return small(d, "mig", current); }
int nvmlDeviceGetTotalEccErrors(void *d, unsigned int type, unsigned int counter, unsigned long long *n) { (void)counter; return number(d, type ? "ecc_uncorrected" : "ecc_corrected", n); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *mask) { return number(d, "throttle", mask); }
#ifndef OLD_DRIVER
int nvmlDeviceGetCurrentClocksEventReasons(void *d, unsigned long long *mask) { return number(d, "throttle", mask); }
int nvmlDeviceGetTemperatureV(void *d, temperature_t *t) { return small(d, "temperature", (unsigned int *)&t->temperature); }
#endif
int nvmlDeviceGetTemperature(void *d, unsigned int sensor, unsigned int *t) { (void)sensor; return small(d, "temperature", t); }

int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
    int answer = number(d, "memory_total", &m->total);
    if (answer != SUCCESS) return answer;
    answer = number(d, "memory_used", &m->used);
    m->free = m->total - m->used;
    return answer;
}

static int processes(void *d, const char *name, unsigned int *count, process_t *out) {
    char value[4096];
    int answer = of(d, name, value, sizeof value);
    if (answer != SUCCESS) return answer;
    unsigned int n = 0, room = out ? *count : 0;
    for (char *part = strtok(value, ","); part; part = strtok(NULL, ","), n++) {
        if (n >= room) continue;
        memset(&out[n], 0, sizeof out[n]);
        sscanf(part, "%u:%llu", &out[n].pid, &out[n].used);
    }
    *count = n;
    return n > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned int *n, process_t *out) { return processes(d, "processes", n, out); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *d, unsigned int *n, process_t *out) { return processes(d, "mps", n, out); }

int nvmlEventSetCreate(void **set) { *set = calloc(1, sizeof(event_set_t)); return SUCCESS; }
int nvmlEventSetFree(void *set) { free(set); return SUCCESS; }

int nvmlDeviceRegisterEvents(void *d, unsigned long long types, void *set) {
    char value[64];
    int answer = of(d, "events", value, sizeof value);
    if (answer != SUCCESS && answer != NOT_SUPPORTED) return answer;
    if (types == XID_EVENT) ((event_set_t *)set)->devices |= 1ull << (size_t)d;
    return SUCCESS;
}

int nvmlEventSetWait_v2(void *handle, event_t *event, unsigned int timeout_ms) {
    char value[4096];
    event_set_t *set = handle;
    int n = 0, answer = lookup("xids", value, sizeof value);
    if (timeout_ms) return 999; /* nobody may wait here */
    if (answer != SUCCESS) return answer == NOT_SUPPORTED ? TIMEOUT : answer;
    for (char *part = strtok(value, ","); part; part = strtok(NULL, ","), n++) {
        unsigned int index = 0, xid = 0;
        if (n < set->given || sscanf(part, "%u:%u", &index, &xid) != 2) continue;
        set->given = n + 1;
        if (!(set->devices & 1ull << (index + 1))) continue;
        memset(event, 0, sizeof *event);
        event->device = (void *)(size_t)(index + 1), event->type = XID_EVENT, event->data = xid;
        return SUCCESS;
    }
    return TIMEOUT;
}

int nvmlDeviceGetProcessUtilization(void *d, sample_t *out, unsigned int *count, unsigned long long since) {
    char value[4096];
    int answer = of(d, "samples", value, sizeof value);
    if (answer != SUCCESS) return answer;
    unsigned int n = 0, room = out ? *count : 0;
    for (char *part = strtok(value, ","); part; part = strtok(NULL, ",")) {
        sample_t sample = {0};
        sscanf(part, "%u:%u:%llu", &sample.pid, &sample.sm, &sample.time);
        if (sample.time <= since) continue;
        if (n < room) out[n] = sample;
        n++;
    }
    *count = n;
    return n == 0 ? NOT_FOUND : n > room ? INSUFFICIENT_SIZE : SUCCESS;
}
