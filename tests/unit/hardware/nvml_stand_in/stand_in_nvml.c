/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1, for tests only.
 *
 * It reads a machine at nvmlInit from the file named by STAND_IN_NVML_MACHINE, a line for each value:
 *
 *     key value [value ...]
 *
 * Numbers are decimal or hexadecimal after 0x. `!N` as value makes the question fail with NVML's error N. What has no
 * line is NOT_SUPPORTED, as the real library says of what a GPU does not have. Keys of a GPU begin with `gpu.I.`,
 * those of a MIG device with `gpu.I.mig.J.`.
 *
 * `in.FUNCTION` (of the whole library), `gpu.I.in.FUNCTION` and `gpu.I.mig.J.in.FUNCTION` make one function misbehave:
 * `hang`, `crash`, `delay MILLISECONDS`, `return ERROR`. `gpu.I.fault ERROR` makes every question to a GPU fail,
 * `gpu.I.open !ERROR` already its opening.
 *
 * The file named by STAND_IN_NVML_LOG gets a line for each call (`call FUNCTION`, with the GPU's number where there is
 * one) and for each GPU that the call attaches (`attach I`).
 *
 * Layouts and numbers are those of nvidia-ml-py 13.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    LIBRARY_NOT_FOUND = 12,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN_ERROR = 999
};

enum { NO_ATTACH = 2, MAX_GPUS = 64, MAX_MIG = 16, MAX_NUMBERS = 64, BUCKETS = 16384, ALL = -1 };

typedef unsigned long long u64;

typedef struct {
    int gpu;
    int mig; /* -1: the GPU itself */
    char prefix[40];
} Device;

typedef struct Entry {
    const char *key;
    const char *value;
    struct Entry *next;
} Entry;

static Device devices[MAX_GPUS];
static Device instances[MAX_GPUS][MAX_MIG];
static Entry *table[BUCKETS];
static char *machine;
static int gpu_count;
static int references;
static int attached[MAX_GPUS];

/* The machine's description */

static unsigned bucket(const char *key)
{
    unsigned hash = 2166136261u;
    for (; *key; key++)
        hash = (hash ^ (unsigned char)*key) * 16777619u;
    return hash % BUCKETS;
}

static const char *lookup(const char *key)
{
    for (Entry *entry = table[bucket(key)]; entry; entry = entry->next)
        if (!strcmp(entry->key, key))
            return entry->value;
    return NULL;
}

static const char *find(const Device *device, const char *format, ...)
{
    char key[192];
    int length = snprintf(key, sizeof key, "%s", device ? device->prefix : "");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(key + length, sizeof key - (size_t)length, format, arguments);
    va_end(arguments);
    return lookup(key);
}

static void forget(void)
{
    for (int index = 0; index < BUCKETS; index++) {
        while (table[index]) {
            Entry *entry = table[index];
            table[index] = entry->next;
            free(entry);
        }
    }
    free(machine);
    machine = NULL;
}

static int read_machine(void)
{
    const char *path = getenv("STAND_IN_NVML_MACHINE");
    FILE *stream = path ? fopen(path, "r") : NULL;
    size_t size = 0;
    forget();
    if (!stream)
        return LIBRARY_NOT_FOUND;
    if (getdelim(&machine, &size, '\0', stream) < 0)
        machine = calloc(1, 1);
    fclose(stream);
    char *rest = machine;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *value = strchr(line, ' ');
        if (!value)
            continue;
        *value++ = '\0';
        Entry *entry = malloc(sizeof *entry);
        *entry = (Entry){line, value, table[bucket(line)]};
        table[bucket(line)] = entry;
    }
    const char *count = lookup("count");
    gpu_count = count ? atoi(count) : 0;
    memset(attached, 0, sizeof attached);
    for (int gpu = 0; gpu < MAX_GPUS; gpu++) {
        devices[gpu] = (Device){gpu, -1, ""};
        snprintf(devices[gpu].prefix, sizeof devices[gpu].prefix, "gpu.%d.", gpu);
        for (int mig = 0; mig < MAX_MIG; mig++) {
            instances[gpu][mig] = (Device){gpu, mig, ""};
            snprintf(instances[gpu][mig].prefix, sizeof instances[gpu][mig].prefix, "gpu.%d.mig.%d.", gpu, mig);
        }
    }
    return SUCCESS;
}

/* The log */

static void note(const char *what, const char *name, int gpu)
{
    const char *path = getenv("STAND_IN_NVML_LOG");
    if (!path)
        return;
    char line[160];
    int length = gpu < 0 ? snprintf(line, sizeof line, "%s %s\n", what, name)
                         : snprintf(line, sizeof line, "%s %s%s%d\n", what, name, *name ? " " : "", gpu);
    int log = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (log < 0 || write(log, line, (size_t)length) != length)
        abort(); /* A test must not pass because its log is missing. */
    close(log);
}

static void attach(int gpu)
{
    for (int index = 0; index < gpu_count; index++) {
        if ((gpu == ALL || gpu == index) && !attached[index]) {
            attached[index] = 1;
            note("attach", "", index);
        }
    }
}

/* What every function begins with */

static int misbehave(const char *how)
{
    u64 number = 0;
    char word[16] = "";
    if (!how)
        return SUCCESS;
    sscanf(how, "%15s %llu", word, &number);
    if (!strcmp(word, "hang"))
        for (;;)
            pause();
    if (!strcmp(word, "crash"))
        raise(SIGSEGV);
    if (!strcmp(word, "delay")) {
        struct timespec left = {(time_t)(number / 1000), (long)(number % 1000) * 1000000};
        while (nanosleep(&left, &left))
            ;
        return SUCCESS;
    }
    return !strcmp(word, "return") ? (int)number : UNKNOWN_ERROR;
}

static int enter(const char *function, const Device *device)
{
    note("call", function, device ? device->gpu : -1);
    int result = misbehave(find(NULL, "in.%s", function));
    if (result == SUCCESS && device)
        result = misbehave(find(device, "in.%s", function));
    return result;
}

static int begin(const char *function, const Device *device)
{
    if (!references)
        return UNINITIALIZED;
    if (!device)
        return INVALID_ARGUMENT;
    int result = enter(function, device);
    if (result != SUCCESS)
        return result;
    const char *fault = find(&devices[device->gpu], "fault");
    return fault ? atoi(fault) : SUCCESS;
}

/* Read up to `limit` numbers of a value; the result is NVML's. */
static int numbers(const char *value, u64 *into, int limit)
{
    memset(into, 0, sizeof *into * (size_t)limit);
    if (!value)
        return NOT_SUPPORTED;
    if (*value == '!')
        return atoi(value + 1);
    for (int index = 0; index < limit && *value; index++) {
        char *end;
        into[index] = strtoull(value, &end, 0);
        if (end == value)
            return UNKNOWN_ERROR;
        value = end + strspn(end, " ");
    }
    return SUCCESS;
}

static int text(const char *value, char *buffer, unsigned size)
{
    if (!value)
        return NOT_SUPPORTED;
    if (*value == '!')
        return atoi(value + 1);
    if (strlen(value) + 1 > size)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

#define READ(function, count, ...)                                       \
    u64 read[MAX_NUMBERS];                                               \
    int result = begin(function, device);                                \
    if (result == SUCCESS)                                               \
        result = numbers(find(device, __VA_ARGS__), read, count);        \
    if (result != SUCCESS)                                               \
        return result;

/* Functions that give one number, two numbers, a text */

#define ONE(name, key)                          \
    int name(Device *device, unsigned *value)   \
    {                                           \
        READ(#name, 1, key)                     \
        *value = (unsigned)read[0];             \
        return SUCCESS;                         \
    }
#define TWO(name, key)                                            \
    int name(Device *device, unsigned *first, unsigned *second)   \
    {                                                             \
        READ(#name, 2, key)                                       \
        *first = (unsigned)read[0];                               \
        *second = (unsigned)read[1];                              \
        return SUCCESS;                                           \
    }
#define TEXT(name, key)                                        \
    int name(Device *device, char *buffer, unsigned size)      \
    {                                                          \
        int result = begin(#name, device);                     \
        return result ? result : text(find(device, key), buffer, size); \
    }

ONE(nvmlDeviceGetMinorNumber, "minor")
ONE(nvmlDeviceGetArchitecture, "architecture")
ONE(nvmlDeviceGetBrand, "brand")
ONE(nvmlDeviceGetNumGpuCores, "cores")
ONE(nvmlDeviceGetNumaNodeId, "numa_node")
ONE(nvmlDeviceGetPersistenceMode, "persistence")
ONE(nvmlDeviceGetComputeMode, "compute_mode")
ONE(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pages_pending")
ONE(nvmlDeviceGetPowerManagementLimit, "power_limit")
ONE(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
ONE(nvmlDeviceGetPowerManagementDefaultLimit, "power_default_limit")
ONE(nvmlDeviceGetPowerUsage, "power_usage")
ONE(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max")
ONE(nvmlDeviceGetGpuMaxPcieLinkGeneration, "pcie_generation_gpu_max")
ONE(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
ONE(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
ONE(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
ONE(nvmlDeviceGetVirtualizationMode, "virtualization")
ONE(nvmlDeviceGetHostVgpuMode, "host_vgpu_mode")
ONE(nvmlDeviceGetPerformanceState, "performance_state")
ONE(nvmlDeviceGetMaxMigDeviceCount, "mig_max")
ONE(nvmlDeviceGetGpuInstanceId, "gpu_instance_id")
ONE(nvmlDeviceGetComputeInstanceId, "compute_instance_id")
ONE(nvmlDeviceGetC2cModeInfoV, "c2c_mode")
TWO(nvmlDeviceGetCudaComputeCapability, "capability")
TWO(nvmlDeviceGetEccMode, "ecc_mode")
TWO(nvmlDeviceGetMigMode, "mig_mode")
TWO(nvmlDeviceGetPowerManagementLimitConstraints, "power_limits")
TWO(nvmlDeviceGetGspFirmwareMode, "gsp_mode")
TEXT(nvmlDeviceGetName, "name")
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetVbiosVersion, "vbios")
TEXT(nvmlDeviceGetGspFirmwareVersion, "gsp_version")

/* The library */

int nvmlInitWithFlags(unsigned flags)
{
    if (references) {
        references++;
        return enter("nvmlInitWithFlags", NULL);
    }
    int result = read_machine();
    if (result == SUCCESS)
        result = enter("nvmlInitWithFlags", NULL);
    if (result != SUCCESS)
        return result;
    u64 fault;
    if (find(NULL, "init") && (result = numbers(find(NULL, "init"), &fault, 1)) != SUCCESS)
        return result;
    references = 1;
    /* The worst case: not every driver attaches the GPUs already here. */
    if (!(flags & NO_ATTACH))
        attach(ALL);
    return SUCCESS;
}

int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

int nvmlShutdown(void)
{
    if (!references)
        return UNINITIALIZED;
    references--;
    return enter("nvmlShutdown", NULL);
}

const char *nvmlErrorString(int code)
{
    static const char *const sentences[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset", "The operating system has blocked the request.",
        "Driver/library version mismatch", "In use by another client", "Insufficient Memory", "No data",
        "The requested vgpu operation is not available on target device, because ECC is enabled",
        "Insufficient Resources", "The requested frequency is not supported", "Argument version mismatch",
        "Requested functionality has been deprecated", "The system is not ready for the request",
        "No GPUs were found", "Resource not in correct state to perform requested operation"};
    if (code >= 0 && code < (int)(sizeof sentences / sizeof *sentences))
        return sentences[code];
    return "Unknown Error";
}

#define SYSTEM_TEXT(name, key)                        \
    int name(char *buffer, unsigned size)             \
    {                                                 \
        int result = enter(#name, NULL);              \
        if (!references)                              \
            return UNINITIALIZED;                     \
        return result ? result : text(find(NULL, key), buffer, size); \
    }
#define SYSTEM_NUMBER(name, key)                      \
    int name(int *value)                              \
    {                                                 \
        u64 read;                                     \
        int result = enter(#name, NULL);              \
        if (!references)                              \
            return UNINITIALIZED;                     \
        if (result == SUCCESS)                        \
            result = numbers(find(NULL, key), &read, 1); \
        if (result == SUCCESS)                        \
            *value = (int)read;                       \
        return result;                                \
    }

SYSTEM_TEXT(nvmlSystemGetDriverVersion, "driver_version")
SYSTEM_TEXT(nvmlSystemGetNVMLVersion, "nvml_version")
SYSTEM_NUMBER(nvmlSystemGetCudaDriverVersion, "cuda_version")
SYSTEM_NUMBER(nvmlSystemGetCudaDriverVersion_v2, "cuda_version")
SYSTEM_NUMBER(nvmlDeviceGetCount_v2, "count")

/* Handles */

static int open_device(const char *function, int index, Device **device)
{
    int result = enter(function, &devices[index]);
    if (result != SUCCESS)
        return result;
    attach(index);
    u64 unused;
    const char *fault = find(&devices[index], "open");
    if (fault && (result = numbers(fault, &unused, 1)) != SUCCESS)
        return result;
    *device = &devices[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device)
{
    if (!references)
        return UNINITIALIZED;
    if (index >= (unsigned)gpu_count)
        return INVALID_ARGUMENT;
    return open_device("nvmlDeviceGetHandleByIndex_v2", (int)index, device);
}

static int same_address(const char *one, const char *other)
{
    unsigned first[4], second[4];
    return sscanf(one, "%x:%x:%x.%x", &first[0], &first[1], &first[2], &first[3]) == 4 &&
           sscanf(other, "%x:%x:%x.%x", &second[0], &second[1], &second[2], &second[3]) == 4 &&
           !memcmp(first, second, sizeof first);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *address, Device **device)
{
    if (!references)
        return UNINITIALIZED;
    for (int index = 0; index < gpu_count; index++) {
        const char *own = find(&devices[index], "bus_id");
        if (own && same_address(address, own))
            return open_device("nvmlDeviceGetHandleByPciBusId_v2", index, device);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device)
{
    if (!references)
        return UNINITIALIZED;
    for (int index = 0; index < gpu_count; index++) {
        /* Every GPU that is asked on the way is woken. */
        Device *asked;
        if (open_device("nvmlDeviceGetHandleByUUID", index, &asked) != SUCCESS)
            continue;
        for (int mig = -1; mig < MAX_MIG; mig++) {
            const char *own = find(mig < 0 ? asked : &instances[index][mig], "uuid");
            if (own && !strcmp(own, uuid)) {
                *device = mig < 0 ? asked : &instances[index][mig];
                return SUCCESS;
            }
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **instance)
{
    int result = begin("nvmlDeviceGetMigDeviceHandleByIndex", device);
    if (result != SUCCESS)
        return result;
    if (index >= MAX_MIG)
        return INVALID_ARGUMENT;
    if (!find(device, "mig.%u.uuid", index))
        return NOT_FOUND;
    *instance = &instances[device->gpu][index];
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *device, Device **parent)
{
    int result = begin("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", device);
    if (result == SUCCESS && device->mig < 0)
        result = INVALID_ARGUMENT;
    if (result == SUCCESS)
        *parent = &devices[device->gpu];
    return result;
}

int nvmlDeviceIsMigDeviceHandle(Device *device, unsigned *is)
{
    int result = begin("nvmlDeviceIsMigDeviceHandle", device);
    if (result == SUCCESS)
        *is = device->mig >= 0;
    return result;
}

int nvmlDeviceGetIndex(Device *device, unsigned *index)
{
    int result = begin("nvmlDeviceGetIndex", device);
    if (result == SUCCESS)
        *index = (unsigned)(device->mig < 0 ? device->gpu : device->mig);
    return result;
}

/* Structures */

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, pci_device, pci_subsystem;
    char address[32];
} Pci;

typedef struct {
    u64 total, free, used;
} Memory;

typedef struct {
    unsigned version;
    u64 total, reserved, free, used;
} MemoryV2;

typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, instance_slices, compute_slices;
    u64 memory_mib;
} Attributes;

typedef struct {
    unsigned version, value;
} AddressingMode;

typedef struct {
    unsigned pid;
    u64 bytes;
    unsigned gpu_instance, compute_instance;
} Process;

typedef struct {
    uint8_t cluster[16];
    int status;
    uint32_t clique;
    uint8_t state;
} Fabric;

typedef struct {
    unsigned version;
    uint8_t cluster[16];
    int status;
    uint32_t clique;
    uint8_t state;
    uint32_t health_mask;
    uint8_t health_summary; /* since version 3 */
} FabricV;

typedef struct {
    uint32_t id, scope;
    int64_t timestamp, latency;
    int type, result;
    union {
        unsigned number;
        u64 wide;
    } value;
} Field;

static void pci_of(Pci *pci, const char *address, unsigned device, unsigned subsystem)
{
    unsigned function;
    memset(pci, 0, sizeof *pci);
    if (sscanf(address, "%x:%x:%x.%x", &pci->domain, &pci->bus, &pci->device, &function) != 4)
        return;
    pci->pci_device = device;
    pci->pci_subsystem = subsystem;
    snprintf(pci->address, sizeof pci->address, "%08X:%02X:%02X.%X", pci->domain, pci->bus & 0xff, pci->device & 0x1f,
             function & 7);
    snprintf(pci->legacy, sizeof pci->legacy, "%04X:%02X:%02X.%X", pci->domain & 0xffff, pci->bus & 0xff,
             pci->device & 0x1f, function & 7);
}

int nvmlDeviceGetPciInfo_v3(Device *device, Pci *pci)
{
    READ("nvmlDeviceGetPciInfo_v3", 2, "pci_ids")
    const char *address = find(device, "bus_id");
    if (!address)
        return NOT_SUPPORTED;
    pci_of(pci, address, (unsigned)read[0], (unsigned)read[1]);
    return SUCCESS;
}

/* Without the reserved part the first version counts it as used. */
int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory)
{
    READ("nvmlDeviceGetMemoryInfo", 3, "memory")
    *memory = (Memory){read[0], read[0] - read[1] - read[2], read[1] + read[2]};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory)
{
    READ("nvmlDeviceGetMemoryInfo_v2", 3, "memory")
    if (memory->version != (sizeof *memory | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    *memory = (MemoryV2){memory->version, read[0], read[1], read[0] - read[1] - read[2], read[2]};
    return SUCCESS;
}

int nvmlDeviceGetBAR1MemoryInfo(Device *device, Memory *memory)
{
    READ("nvmlDeviceGetBAR1MemoryInfo", 2, "bar1")
    *memory = (Memory){read[0], read[0] - read[1], read[1]};
    return SUCCESS;
}

int nvmlDeviceGetAddressingMode(Device *device, AddressingMode *mode)
{
    READ("nvmlDeviceGetAddressingMode", 1, "addressing_mode")
    if (mode->version != (sizeof *mode | 1u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    mode->value = (unsigned)read[0];
    return SUCCESS;
}

int nvmlDeviceGetAttributes_v2(Device *device, Attributes *attributes)
{
    READ("nvmlDeviceGetAttributes_v2", 9, "attributes")
    unsigned *field = &attributes->multiprocessors;
    for (int index = 0; index < 8; index++)
        field[index] = (unsigned)read[index];
    attributes->memory_mib = read[8];
    return SUCCESS;
}

int nvmlDeviceGetCpuAffinity(Device *device, unsigned size, unsigned long *set)
{
    READ("nvmlDeviceGetCpuAffinity", MAX_NUMBERS, "cpu_affinity")
    for (unsigned index = 0; index < size; index++)
        set[index] = index < MAX_NUMBERS ? read[index] : 0;
    return SUCCESS;
}

int nvmlDeviceGetCpuAffinityWithinScope(Device *device, unsigned size, unsigned long *set, unsigned scope)
{
    (void)scope;
    return nvmlDeviceGetCpuAffinity(device, size, set);
}

int nvmlDeviceGetTotalEccErrors(Device *device, unsigned type, unsigned counter, u64 *count)
{
    READ("nvmlDeviceGetTotalEccErrors", 1, "ecc_errors.%u.%u", type, counter)
    *count = read[0];
    return SUCCESS;
}

int nvmlDeviceGetMemoryErrorCounter(Device *device, unsigned type, unsigned counter, unsigned place, u64 *count)
{
    READ("nvmlDeviceGetMemoryErrorCounter", 1, "ecc_errors.%u.%u.%u", type, counter, place)
    *count = read[0];
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(Device *device, unsigned *correctable, unsigned *uncorrectable, unsigned *pending,
                              unsigned *failure)
{
    READ("nvmlDeviceGetRemappedRows", 4, "remapped_rows")
    *correctable = (unsigned)read[0];
    *uncorrectable = (unsigned)read[1];
    *pending = (unsigned)read[2];
    *failure = (unsigned)read[3];
    return SUCCESS;
}

/* Each process is four numbers: pid, bytes, GPU instance, compute instance. */
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *processes)
{
    READ("nvmlDeviceGetComputeRunningProcesses_v3", MAX_NUMBERS, "processes")
    unsigned there = 0;
    while (there < MAX_NUMBERS / 4 && read[there * 4])
        there++;
    if (there && (!processes || *count < there)) {
        *count = there;
        return INSUFFICIENT_SIZE;
    }
    *count = there;
    for (unsigned index = 0; index < there; index++)
        processes[index] = (Process){(unsigned)read[index * 4], read[index * 4 + 1], (unsigned)read[index * 4 + 2],
                                     (unsigned)read[index * 4 + 3]};
    return SUCCESS;
}

/* Links */

static int link_of(const char *function, const Device *device, unsigned link)
{
    u64 count;
    int result = begin(function, device);
    if (result == SUCCESS)
        result = numbers(find(device, "links"), &count, 1);
    if (result == SUCCESS && link >= count)
        result = INVALID_ARGUMENT;
    return result;
}

#define LINK(name, ...)                                                     \
    u64 read;                                                               \
    int result = link_of(name, device, link);                               \
    if (result == SUCCESS)                                                  \
        result = numbers(find(device, __VA_ARGS__), &read, 1);              \
    if (result != SUCCESS)                                                  \
        return result;

int nvmlDeviceGetNvLinkState(Device *device, unsigned link, unsigned *active)
{
    LINK("nvmlDeviceGetNvLinkState", "link.%u.state", link)
    *active = (unsigned)read;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkVersion(Device *device, unsigned link, unsigned *version)
{
    LINK("nvmlDeviceGetNvLinkVersion", "link.%u.version", link)
    *version = (unsigned)read;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkCapability(Device *device, unsigned link, unsigned capability, unsigned *there)
{
    LINK("nvmlDeviceGetNvLinkCapability", "link.%u.capability.%u", link, capability)
    *there = (unsigned)read;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemoteDeviceType(Device *device, unsigned link, unsigned *type)
{
    LINK("nvmlDeviceGetNvLinkRemoteDeviceType", "link.%u.remote_type", link)
    *type = (unsigned)read;
    return SUCCESS;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(Device *device, unsigned link, Pci *pci)
{
    int result = link_of("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, link);
    const char *address = find(device, "link.%u.remote_bus_id", link);
    if (result != SUCCESS)
        return result;
    if (!address)
        return NOT_SUPPORTED;
    if (*address == '!')
        return atoi(address + 1);
    pci_of(pci, address, 0, 0);
    return SUCCESS;
}

int nvmlDeviceGetTopologyCommonAncestor(Device *device, Device *other, unsigned *level)
{
    if (!other)
        return INVALID_ARGUMENT;
    READ("nvmlDeviceGetTopologyCommonAncestor", 1, "ancestor.%d", other->gpu)
    *level = (unsigned)read[0];
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(Device *device, Device *other, unsigned capability, unsigned *status)
{
    if (!other)
        return INVALID_ARGUMENT;
    READ("nvmlDeviceGetP2PStatus", 1, "p2p.%d.%u", other->gpu, capability)
    *status = (unsigned)read[0];
    return SUCCESS;
}

/* `fabric` is: state, status, clique, health mask, health summary. */

static void cluster_of(const Device *device, uint8_t *cluster)
{
    const char *digits = find(device, "fabric_cluster");
    memset(cluster, 0, 16);
    for (int index = 0; digits && index < 16; index++, digits += 2) {
        unsigned octet;
        if (sscanf(digits, "%2x", &octet) != 1)
            break;
        cluster[index] = (uint8_t)octet;
    }
}

int nvmlDeviceGetGpuFabricInfo(Device *device, Fabric *fabric)
{
    READ("nvmlDeviceGetGpuFabricInfo", 5, "fabric")
    cluster_of(device, fabric->cluster);
    fabric->state = (uint8_t)read[0];
    fabric->status = (int)read[1];
    fabric->clique = (uint32_t)read[2];
    return SUCCESS;
}

int nvmlDeviceGetGpuFabricInfoV(Device *device, FabricV *fabric)
{
    READ("nvmlDeviceGetGpuFabricInfoV", 5, "fabric")
    const char *newest = find(NULL, "fabric_version");
    unsigned version = fabric->version >> 24;
    unsigned size = version == 2 ? 36 : sizeof *fabric;
    if (version < 2 || version > (newest ? (unsigned)atoi(newest) : 3) || (fabric->version & 0xffffff) != size)
        return ARGUMENT_VERSION_MISMATCH;
    cluster_of(device, fabric->cluster);
    fabric->state = (uint8_t)read[0];
    fabric->status = (int)read[1];
    fabric->clique = (uint32_t)read[2];
    fabric->health_mask = (uint32_t)read[3];
    if (version > 2)
        fabric->health_summary = (uint8_t)read[4];
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(Device *device, int count, Field *fields)
{
    int result = begin("nvmlDeviceGetFieldValues", device);
    for (int index = 0; result == SUCCESS && index < count; index++) {
        u64 read;
        const char *value = find(device, "field.%u.%u", fields[index].id, fields[index].scope);
        fields[index].result = numbers(value ? value : find(device, "field.%u", fields[index].id), &read, 1);
        fields[index].type = 1; /* unsigned int */
        fields[index].value.wide = read;
    }
    return result;
}

/* What tests compare with nvidia-ml-py's own layouts. */
int stand_in_size_of(const char *name)
{
    static const struct {
        const char *name;
        size_t size;
    } sizes[] = {
        {"nvmlPciInfo_t", sizeof(Pci)},
        {"c_nvmlMemory_t", sizeof(Memory)},
        {"c_nvmlMemory_v2_t", sizeof(MemoryV2)},
        {"c_nvmlBAR1Memory_t", sizeof(Memory)},
        {"c_nvmlDeviceAttributes", sizeof(Attributes)},
        {"c_nvmlDeviceAddressingMode_t", sizeof(AddressingMode)},
        {"c_nvmlProcessInfo_v2_t", sizeof(Process)},
        {"c_nvmlGpuFabricInfo_t", sizeof(Fabric)},
        {"c_nvmlGpuFabricInfo_v2_t", 36},
        {"c_nvmlGpuFabricInfo_v3_t", sizeof(FabricV)},
        {"c_nvmlFieldValue_t", sizeof(Field)},
    };
    for (size_t index = 0; index < sizeof sizes / sizeof *sizes; index++)
        if (!strcmp(sizes[index].name, name))
            return (int)sizes[index].size;
    return -1;
}
