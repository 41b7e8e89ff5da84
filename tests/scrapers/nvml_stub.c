/*
 * A libnvidia-ml.so.1 that does what a script says, for tests of the scraper.
 *
 * $NVML_STUB names the script, read at every call. Its lines are `CALL GPU ANSWER`: CALL is an NVML
 * function, GPU an index or * (calls without a GPU are of index 0), ANSWER a number of nvmlReturn_t
 * or `hang`. `gpus 0 N` sets how many GPUs there are (2 without it). The last line that fits counts.
 * $NVML_STUB_CALLS names a file to which each call is appended as `CALL GPU`.
 *
 * Struct layouts and signatures are those of nvml.h. Values are in NVML's units and differ by GPU.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned int index; } Device;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned int version, sensor; int celsius; } Temperature;

static Device devices[8] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};

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

static int called(const char *call, unsigned int gpu) {
    FILE *calls = fopen(getenv("NVML_STUB_CALLS"), "a");
    fprintf(calls, "%s %u\n", call, gpu);
    fclose(calls);
    int answer = scripted(call, gpu, 0);
    while (answer == -1) pause();
    return answer;
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
    snprintf(uuid, length, "GPU-0000000%u-feed", device->index);
    return 0;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned int length) {
    CALLED(device->index);
    snprintf(name, length, "NVIDIA Stub");
    return 0;
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    CALLED(device->index);
    rates->gpu = 37 + device->index;
    rates->memory = 12 + device->index;
    return 0;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    CALLED(device->index);
    if (memory->version != (sizeof(MemoryV2) | 2u << 24)) return 25;
    memory->total = 80ull << 30;
    memory->reserved = 1ull << 30;
    memory->free = 60ull << 30;
    memory->used = 20ull << 30; /* with what is reserved, as the header has it */
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
    temperature->celsius = 45 + (int)device->index;
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
    *milliwatts = 123456 + device->index;
    return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    CALLED(device->index);
    *millijoules = 9007199254741500ull + device->index * 500;
    return 0;
}

int nvmlDeviceGetTotalEccErrors(Device *device, int kind, int counter, unsigned long long *count) {
    CALLED(device->index);
    if (counter) return 2; /* aggregate: not what the scraper should ask for */
    *count = kind ? 2 : 7;
    return 0;
}

int nvmlDeviceGetClockInfo(Device *device, unsigned int domain, unsigned int *megahertz) {
    CALLED(device->index);
    if (domain > 2) return 2;
    *megahertz = (unsigned int[]){1410, 1395, 1593}[domain];
    return 0;
}
