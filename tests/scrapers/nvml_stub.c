/*
 * A libnvidia-ml.so.1 that does what a script says, for tests of the scraper.
 *
 * $NVML_STUB names the script, read at every call. Its lines are `CALL GPU ANSWER`: CALL is an NVML
 * function, GPU an index or * (calls without a GPU are of index 0), ANSWER a number of nvmlReturn_t
 * or `hang`. The last line that fits counts. So do these lines:
 *   gpus 0 N       how many GPUs there are (2 without it)
 *   mig GPU N      the GPU is divided into N instances, 7 at most
 *   links 0 N      how many NVLink links each has (0 without it); the last one is down
 *   processes 0 N  how many processes each has (2 without it), of the ids 4242, 4243 ...
 *   xid GPU CODE   each wait for events ends with this XID error of the GPU
 *   field ID CODE  an nvmlReturn_t for the field value
 *   gpm ID CODE    an nvmlReturn_t for the GPM metric
 *   wave 0 1       values go up and down with the polls, as on a machine that works
 * $NVML_STUB_CALLS names a file to which each call is appended as `CALL GPU`, and `hang GPU` where it hangs.
 *
 * Struct layouts and signatures are those of nvml.h. Values are in NVML's units and differ by GPU.
 * `tidegauge_nvml_stub` is there for recordings to tell what they were made of.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned int index, instance; } Device; /* instance 0: the whole GPU */
typedef struct { Device *device; unsigned long long type, data; unsigned int gi, ci; } Event;
typedef struct { unsigned int id, scope; long long time, latency; unsigned int type, answer;
                 union { double d; unsigned int ui; unsigned long long ull; } value; } Field;
typedef struct { unsigned int pid; unsigned long long memory; unsigned int gi, ci; } Process;
typedef struct { unsigned int pid; unsigned long long time; unsigned int sm, mem, enc, dec; } Busy;
typedef struct { unsigned int version, supported; } GpmSupport;
typedef struct { unsigned int taken, used; } GpmSample;
typedef struct { unsigned int id, answer; double value; const char *texts[3]; } GpmMetric;
typedef struct { unsigned int version, count; GpmSample *first, *second; GpmMetric metrics[]; } GpmMetrics;
typedef struct { unsigned int version; int celsius; } Margin;
typedef struct { unsigned long long total, free, used; } Bar1;
typedef struct { unsigned long long reference, held; } Violation;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned int version, sensor; int celsius; } Temperature;

int tidegauge_nvml_stub = 1;

static Device devices[8], instances[8][8];
static GpmSample samples[64];
static unsigned int polls;

__attribute__((constructor)) static void number(void) {
    for (unsigned int gpu = 0; gpu < 8; gpu++) {
        devices[gpu].index = gpu;
        for (unsigned int place = 0; place < 8; place++) {
            instances[gpu][place].index = gpu;
            instances[gpu][place].instance = place + 1;
        }
    }
}

static int scripted(const char *call, unsigned int gpu, int otherwise) {
    char line[128], name[64], which[8], answer[16];
    FILE *script = fopen(getenv("NVML_STUB"), "r");
    while (script && fgets(line, sizeof line, script))
        if (sscanf(line, "%63s %7s %15s", name, which, answer) == 3 && !strcmp(name, call)
            && (which[0] == '*' || (unsigned int)atoi(which) == gpu))
            otherwise = strcmp(answer, "hang") ? atoi(answer) : -1;
    if (script) fclose(script);
    return otherwise;
}

static void note(const char *call, unsigned int gpu) {
    FILE *calls = fopen(getenv("NVML_STUB_CALLS"), "a");
    fprintf(calls, "%s %u\n", call, gpu);
    fclose(calls);
}

static int called(const char *call, unsigned int gpu) {
    /* Outside of its tests, where others in this process ask for NVML: there is no driver. */
    if (!getenv("NVML_STUB")) return 9; /* NVML_ERROR_DRIVER_NOT_LOADED */
    note(call, gpu);
    int answer = scripted(call, gpu, 0);
    if (answer == -1) note("hang", gpu);
    while (answer == -1) pause();
    return answer;
}

/* `base`, or with the line `wave` what goes up and down by `swing` around it, every 12 polls. */
static double wave(double base, double swing) {
    static const double steps[12] = {0, 1, 2, 3, 2, 1, 0, -1, -2, -3, -2, -1};
    return scripted("wave", 0, 0) ? base + swing * steps[polls % 12] / 3 : base;
}

/* A counter, that grows by `step` with each poll where the line `wave` is. */
static unsigned long long grown(unsigned long long base, unsigned long long step) {
    return scripted("wave", 0, 0) ? base + polls * step : base;
}

#define CALLED(gpu) \
    do { int answer = called(__func__, gpu); if (answer) return answer; } while (0)

int nvmlInitWithFlags(unsigned int flags) { (void)flags; CALLED(0); return 0; }
int nvmlShutdown(void) { CALLED(0); return 0; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    CALLED(0);
    snprintf(version, length, "570.86.10");
    return 0;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    CALLED(0);
    *count = (unsigned int)scripted("gpus", 0, 2);
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device **device) {
    CALLED(index);
    *device = &devices[index];
    return 0;
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned int length) {
    CALLED(device->index);
    if (device->instance) snprintf(uuid, length, "MIG-0000000%u-%u", device->index, device->instance);
    else snprintf(uuid, length, "GPU-0000000%u-feed", device->index);
    return 0;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned int length) {
    CALLED(device->index);
    snprintf(name, length, device->instance ? "NVIDIA Stub MIG 1g.10gb" : "NVIDIA Stub");
    return 0;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    CALLED(device->index);
    if (!device->index) polls++;
    rates->gpu = (unsigned int)wave(37, 30) + device->index;
    rates->memory = (unsigned int)wave(12, 9) + device->index;
    return 0;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    CALLED(device->index);
    if (memory->version != (sizeof(MemoryV2) | 2u << 24)) return 25;
    memory->total = (device->instance ? 10ull : 80ull) << 30;
    memory->reserved = 1ull << 30;
    memory->free = (device->instance ? 6ull << 30 : (unsigned long long)wave(60, 12) << 30);
    memory->used = memory->total - memory->free; /* with what is reserved, as the header has it */
    return 0;
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    CALLED(device->index);
    memory->total = 80ull << 30;
    memory->free = 60ull << 30;
    memory->used = 20ull << 30;
    return 0;
}

int nvmlDeviceGetTemperatureV(Device *device, Temperature *temperature) {
    CALLED(device->index);
    if (temperature->version != (sizeof(Temperature) | 1u << 24) || temperature->sensor) return 25;
    temperature->celsius = (int)wave(45, 14) + (int)device->index;
    return 0;
}

int nvmlDeviceGetTemperature(Device *device, unsigned int sensor, unsigned int *celsius) {
    CALLED(device->index);
    if (sensor) return 2;
    *celsius = 51 + device->index;
    return 0;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned int *milliwatts) {
    CALLED(device->index);
    *milliwatts = (unsigned int)wave(123456, 60000) + device->index;
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    CALLED(device->index);
    *millijoules = grown(9007199254741500ull, 1234500) + device->index * 500;
    return 0;
}

int nvmlDeviceGetTotalEccErrors(Device *device, int kind, int counter, unsigned long long *count) {
    CALLED(device->index);
    *count = (kind ? 2 : 7) + (counter ? 100 : 0);
    return 0;
}

int nvmlDeviceGetClockInfo(Device *device, unsigned int domain, unsigned int *megahertz) {
    CALLED(device->index);
    if (domain > 3) return 2;
    *megahertz = (unsigned int[]){1410, 1395, 1593, 1290}[domain];
    return 0;
}

int nvmlDeviceGetMaxClockInfo(Device *device, unsigned int domain, unsigned int *megahertz) {
    CALLED(device->index);
    if (domain > 3) return 2;
    *megahertz = (unsigned int[]){1980, 1980, 2619, 1545}[domain];
    return 0;
}

int nvmlDeviceGetEncoderUtilization(Device *device, unsigned int *percent, unsigned int *period) {
    CALLED(device->index);
    *percent = 3;
    *period = 167000;
    return 0;
}

int nvmlDeviceGetDecoderUtilization(Device *device, unsigned int *percent, unsigned int *period) {
    CALLED(device->index);
    *percent = 4;
    *period = 167000;
    return 0;
}

int nvmlDeviceGetPerformanceState(Device *device, unsigned int *state) {
    CALLED(device->index);
    *state = device->index ? 8 : 0;
    return 0;
}

int nvmlDeviceGetBAR1MemoryInfo(Device *device, Bar1 *bar1) {
    CALLED(device->index);
    bar1->total = 128ull << 30;
    bar1->free = 126ull << 30;
    bar1->used = 2ull << 30;
    return 0;
}

int nvmlDeviceGetTemperatureThreshold(Device *device, unsigned int which, unsigned int *celsius) {
    CALLED(device->index);
    if (which > 1) return 3;
    *celsius = which ? 87 : 92;
    return 0;
}

int nvmlDeviceGetMarginTemperature(Device *device, Margin *margin) {
    CALLED(device->index);
    if (margin->version != (sizeof(Margin) | 1u << 24)) return 25;
    margin->celsius = 42 - (int)device->index;
    return 0;
}

int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned int *milliwatts) {
    CALLED(device->index);
    *milliwatts = 650000;
    return 0;
}

int nvmlDeviceGetPowerManagementDefaultLimit(Device *device, unsigned int *milliwatts) {
    CALLED(device->index);
    *milliwatts = 700000;
    return 0;
}

int nvmlDeviceGetSupportedClocksEventReasons(Device *device, unsigned long long *reasons) {
    CALLED(device->index);
    *reasons = 0x1ff & ~0x10ull; /* no sync boost */
    return 0;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *reasons) {
    CALLED(device->index);
    *reasons = device->index ? 0x1 : 0x4 | 0x20;
    return 0;
}

int nvmlDeviceGetSupportedClocksThrottleReasons(Device *device, unsigned long long *reasons) {
    CALLED(device->index);
    *reasons = 0x7;
    return 0;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *reasons) {
    CALLED(device->index);
    *reasons = 0x2;
    return 0;
}

int nvmlDeviceGetViolationStatus(Device *device, unsigned int policy, Violation *violation) {
    CALLED(device->index);
    if (policy > 5) return 2;
    violation->reference = 123;
    violation->held = grown(1500000000ull * (policy + 1), 250000000);
    return 0;
}

int nvmlDeviceGetEccMode(Device *device, unsigned int *current, unsigned int *pending) {
    CALLED(device->index);
    *current = *pending = 1;
    return 0;
}

int nvmlDeviceGetRemappedRows(Device *device, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *pending, unsigned int *failed) {
    CALLED(device->index);
    *corrected = 5;
    *uncorrected = 1;
    *pending = 1;
    *failed = device->index;
    return 0;
}

int nvmlDeviceGetRetiredPages(Device *device, unsigned int cause, unsigned int *count,
                              unsigned long long *pages) {
    CALLED(device->index);
    unsigned int there = cause ? 1 : 3;
    if (!pages || *count < there) {
        *count = there;
        return 7;
    }
    for (unsigned int page = 0; page < there; page++) pages[page] = 0xf000 + page;
    *count = there;
    return 0;
}

int nvmlDeviceGetRetiredPagesPendingStatus(Device *device, unsigned int *pending) {
    CALLED(device->index);
    *pending = device->index;
    return 0;
}

int nvmlDeviceGetPcieReplayCounter(Device *device, unsigned int *count) {
    CALLED(device->index);
    *count = 17;
    return 0;
}

int nvmlDeviceGetPcieThroughput(Device *device, unsigned int counter, unsigned int *kilobytes) {
    CALLED(device->index);
    *kilobytes = counter ? 2000 : 1000;
    return 0;
}

int nvmlDeviceGetCurrPcieLinkGeneration(Device *device, unsigned int *generation) {
    CALLED(device->index);
    *generation = 4;
    return 0;
}

int nvmlDeviceGetMaxPcieLinkGeneration(Device *device, unsigned int *generation) {
    CALLED(device->index);
    *generation = 5;
    return 0;
}

int nvmlDeviceGetCurrPcieLinkWidth(Device *device, unsigned int *lanes) {
    CALLED(device->index);
    *lanes = 8;
    return 0;
}

int nvmlDeviceGetMaxPcieLinkWidth(Device *device, unsigned int *lanes) {
    CALLED(device->index);
    *lanes = 16;
    return 0;
}

int nvmlDeviceGetNvLinkState(Device *device, unsigned int link, unsigned int *active) {
    CALLED(device->index);
    unsigned int links = (unsigned int)scripted("links", 0, 0);
    if (link >= links) return links ? 2 : 3;
    *active = link + 1 < links;
    return 0;
}

int nvmlDeviceGetFieldValues(Device *device, int count, Field *fields) {
    CALLED(device->index);
    for (int place = 0; place < count; place++) {
        Field *field = &fields[place];
        field->time = 1000;
        field->answer = (unsigned int)scripted("field", field->id, 0);
        field->type = 3;
        if (field->id >= 138 && field->id <= 141) { /* NVLink, KiB by link */
            if (field->scope + 1 >= (unsigned int)scripted("links", 0, 0)) field->answer = 3;
            field->value.ull = grown(1000ull * (field->id - 137) + field->scope, 512);
        } else if (field->id == 197 || field->id == 198) {
            field->value.ull = grown(1ull << 40, 3ull << 20) + field->id;
        } else {
            field->type = 1;
            field->value.ui = field->id - 30;
        }
    }
    return 0;
}

static int list(unsigned int *count, Process *processes) {
    unsigned int there = (unsigned int)scripted("processes", 0, 2), room = *count;
    *count = there;
    if (!there) return 0;
    if (!processes || room < there) return 7;
    for (unsigned int place = 0; place < there; place++) {
        Process process = {4242 + place, (1ull + place) << 30, 0, 0};
        if (place == 1) process.memory = ~0ull; /* not available */
        processes[place] = process;
    }
    return 0;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned int *count, Process *processes) {
    CALLED(device->index);
    return list(count, processes);
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned int *count, Process *processes) {
    CALLED(device->index);
    return list(count, processes);
}

int nvmlDeviceGetProcessUtilization(Device *device, Busy *busy, unsigned int *count,
                                    unsigned long long since) {
    CALLED(device->index);
    if (since >= 5000 + polls) return 6;
    if (!busy || *count < 3) {
        *count = 3;
        return 7;
    }
    busy[0] = (Busy){4242, 4000 + polls, 40, 10, 0, 0};
    busy[1] = (Busy){4242, 5000 + polls, 60, 30, 0, 0};
    busy[2] = (Busy){0, 0, 0, 0, 0, 0}; /* a place that was not filled */
    return 0;
}

int nvmlDeviceGetSupportedEventTypes(Device *device, unsigned long long *types) {
    CALLED(device->index);
    *types = 0x1f;
    return 0;
}

int nvmlEventSetCreate(Event **events) { CALLED(0); *events = (Event *)&polls; return 0; }
int nvmlEventSetFree(Event *events) { (void)events; CALLED(0); return 0; }

int nvmlDeviceRegisterEvents(Device *device, unsigned long long types, Event *events) {
    (void)types, (void)events;
    CALLED(device->index);
    return 0;
}

int nvmlEventSetWait_v2(Event *events, Event *event, unsigned int milliseconds) {
    (void)events;
    CALLED(0);
    usleep(milliseconds * 200); /* early, as the header allows */
    for (unsigned int gpu = 0; gpu < 8; gpu++) {
        int code = scripted("xid", gpu, 0);
        if (!code) continue;
        *event = (Event){&devices[gpu], 0x8, (unsigned long long)code, 0, 0};
        return 0;
    }
    return 10;
}

int nvmlDeviceGetMigMode(Device *device, unsigned int *current, unsigned int *pending) {
    CALLED(device->index);
    *current = *pending = scripted("mig", device->index, 0) > 0;
    return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned int *count) {
    CALLED(device->index);
    *count = 7;
    return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned int index, Device **instance) {
    CALLED(device->index);
    if (index >= (unsigned int)scripted("mig", device->index, 0)) return 6;
    *instance = &instances[device->index][index];
    return 0;
}

int nvmlDeviceGetGpuInstanceId(Device *device, unsigned int *id) {
    CALLED(device->index);
    *id = device->instance + 6;
    return 0;
}

int nvmlGpmQueryDeviceSupport(Device *device, GpmSupport *support) {
    CALLED(device->index);
    if (support->version != 1) return 25;
    support->supported = 1;
    return 0;
}

int nvmlGpmSampleAlloc(GpmSample **sample) {
    CALLED(0);
    for (int place = 0; place < 64; place++)
        if (!samples[place].used) {
            samples[place] = (GpmSample){0, 1};
            *sample = &samples[place];
            return 0;
        }
    return 20;
}

int nvmlGpmSampleFree(GpmSample *sample) { CALLED(0); sample->used = 0; return 0; }

int nvmlGpmSampleGet(Device *device, GpmSample *sample) {
    CALLED(device->index);
    sample->taken = 1 + device->index;
    return 0;
}

int nvmlGpmMigSampleGet(Device *device, unsigned int instance, GpmSample *sample) {
    CALLED(device->index);
    sample->taken = 10 * instance;
    return 0;
}

int nvmlGpmMetricsGet(GpmMetrics *metrics) {
    CALLED(0);
    if (metrics->version != 1 || metrics->first->taken != metrics->second->taken) return 2;
    for (unsigned int place = 0; place < metrics->count; place++) {
        GpmMetric *metric = &metrics->metrics[place];
        metric->answer = (unsigned int)scripted("gpm", metric->id, 0);
        metric->value = wave(20 + metric->id, 15) + metrics->first->taken * 0.5;
        metric->texts[0] = metric->texts[1] = metric->texts[2] = "a text";
    }
    return 0;
}
