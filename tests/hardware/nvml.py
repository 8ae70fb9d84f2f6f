"""The driver's library by ctypes, from Python's standard library alone: a GPU node rarely has anything else.

Functions that change a GPU are named in CHANGES, and a `Library` calls them only where it was made for that.
"""

import ctypes
from ctypes import POINTER, byref, c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void_p, create_string_buffer

CODES = {
    0: "SUCCESS", 1: "UNINITIALIZED", 2: "INVALID_ARGUMENT", 3: "NOT_SUPPORTED", 4: "NO_PERMISSION",
    5: "ALREADY_INITIALIZED", 6: "NOT_FOUND", 7: "INSUFFICIENT_SIZE", 8: "INSUFFICIENT_POWER",
    9: "DRIVER_NOT_LOADED", 10: "TIMEOUT", 11: "IRQ_ISSUE", 12: "LIBRARY_NOT_FOUND", 13: "FUNCTION_NOT_FOUND",
    14: "CORRUPTED_INFOROM", 15: "GPU_IS_LOST", 16: "RESET_REQUIRED", 17: "OPERATING_SYSTEM",
    18: "LIB_RM_VERSION_MISMATCH", 19: "IN_USE", 20: "MEMORY", 21: "NO_DATA", 22: "VGPU_ECC_NOT_SUPPORTED",
    23: "INSUFFICIENT_RESOURCES", 24: "FREQ_NOT_SUPPORTED", 25: "ARGUMENT_VERSION_MISMATCH", 26: "DEPRECATED",
    27: "NOT_READY", 28: "GPU_NOT_FOUND", 29: "INVALID_STATE", 999: "UNKNOWN",
}
XID, MIG_CONFIG_CHANGE = 0x8, 0x100
NO_INSTANCE = 0xFFFFFFFF
RECOVERY_ACTION = 230
RESETLESS_MIG = 184

# All that this program ever calls. What is not here cannot be called by mistake.
READS = {
    "nvmlInit_v2", "nvmlShutdown", "nvmlSystemGetDriverVersion", "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetUUID", "nvmlDeviceGetName",
    "nvmlDeviceGetMinorNumber", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetAttributes_v2", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPersistenceMode",
    "nvmlDeviceGetSupportedEventTypes", "nvmlDeviceGetFieldValues", "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGpuInstanceProfileInfo", "nvmlDeviceGetGpuInstances", "nvmlDeviceGetGpuInstanceById",
    "nvmlGpuInstanceGetInfo", "nvmlGpuInstanceGetComputeInstanceProfileInfo", "nvmlGpuInstanceGetComputeInstances",
    "nvmlComputeInstanceGetInfo_v2", "nvmlDeviceGetTopologyCommonAncestor", "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetVirtualizationMode",
    # A set of events is the caller's own.
    "nvmlEventSetCreate", "nvmlEventSetFree", "nvmlEventSetWait_v2", "nvmlDeviceRegisterEvents",
}
CHANGES = {
    "nvmlDeviceCreateGpuInstance", "nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceDestroy",
    "nvmlGpuInstanceCreateComputeInstance", "nvmlComputeInstanceDestroy",
}


def structure(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": [(key, kind) for kind, keys in fields for key in keys.split()]})


Pci = structure("Pci", (c_char * 16, "legacy"), (c_uint, "domain bus device id subsystem"), (c_char * 32, "address"))
Event = structure("Event", (c_void_p, "device"), (c_ulonglong, "type data"), (c_uint, "gi ci"))
GpuInstanceInfo = structure("GpuInstanceInfo", (c_void_p, "device"), (c_uint, "id profile start size"))
ComputeInstanceInfo = structure(
    "ComputeInstanceInfo", (c_void_p, "device gpu_instance"), (c_uint, "id profile start size"))
GpuProfile = structure(
    "GpuProfile", (c_uint, "id p2p slices count sms copy decoders encoders jpegs ofas"), (c_ulonglong, "memory_mib"))
ComputeProfile = structure("ComputeProfile", (c_uint, "id slices count sms copy decoders encoders jpegs ofas"))
Attributes = structure(
    "Attributes", (c_uint, "sms copy decoders encoders jpegs ofas gpu_slices compute_slices"),
    (c_ulonglong, "memory_mib"))
Memory = structure("Memory", (c_ulonglong, "total free used"))
Field = structure(
    "Field", (c_uint, "id scope"), (c_longlong, "time latency"), (c_uint, "type code"), (c_ulonglong, "value"))
Process = structure("Process", (c_uint, "pid"), (c_ulonglong, "memory"), (c_uint, "gi ci"))
Placement = structure("Placement", (c_uint, "start size"))


class Refused(Exception):
    """A call that did not succeed."""

    def __init__(self, call, code):
        super().__init__(f"{call}: {code}")
        self.call, self.code = call, code


class Library:
    """The library at `path`. `may_change`: whether functions that change a GPU may be called."""

    def __init__(self, path, may_change=False):
        self.path = path
        self._allowed = READS | CHANGES if may_change else READS
        self._library = ctypes.CDLL(path)

    def code(self, call, *arguments):
        """The code that the call answers with, by name."""
        if call not in self._allowed:
            raise PermissionError(f"{call} changes a GPU, and that was not allowed")
        try:
            function = getattr(self._library, call)
        except AttributeError:
            return "FUNCTION_NOT_FOUND"
        function.restype = c_int
        code = function(*arguments)
        return CODES.get(code, str(code))

    def do(self, call, *arguments):
        code = self.code(call, *arguments)
        if code != "SUCCESS":
            raise Refused(call, code)

    def get(self, call, kind, *arguments):
        """What the call puts into its last argument."""
        value = kind()
        self.do(call, *arguments, byref(value))
        return value.value if hasattr(value, "value") else value

    def text(self, call, *arguments):
        buffer = create_string_buffer(96)
        self.do(call, *arguments, buffer, c_uint(96))
        return buffer.value.decode(errors="replace")

    def handle(self, call, *arguments):
        return c_void_p(self.get(call, c_void_p, *arguments))

    def list(self, call, kind, *arguments, most=64, count_first=False):
        """An array that the call fills, and says how far. NVML has both orders of these arguments."""
        values, count = (kind * most)(), c_uint(most)
        last = (byref(count), values) if count_first else (values, byref(count))
        self.do(call, *arguments, *last)
        return [kind(value) if kind is c_void_p else value for value in values[: count.value]]

    def __enter__(self):
        self.do("nvmlInit_v2")
        return self

    def __exit__(self, *_):
        self.code("nvmlShutdown")

    def gpus(self):
        """Handles by index; a code in place of one that is refused."""
        found = {}
        for index in range(self.get("nvmlDeviceGetCount_v2", c_uint)):
            try:
                found[index] = self.handle("nvmlDeviceGetHandleByIndex_v2", c_uint(index))
            except Refused as refused:
                found[index] = refused.code
        return found

    def mig_mode(self, gpu):
        """Whether MIG mode is on; `None` where the GPU has none."""
        current, pending = c_uint(), c_uint()
        code = self.code("nvmlDeviceGetMigMode", gpu, byref(current), byref(pending))
        return bool(current.value) if code == "SUCCESS" else None

    def mig_devices(self, gpu):
        """Handles by MIG index, and the codes of indices without a device."""
        found, codes = {}, set()
        try:
            most = self.get("nvmlDeviceGetMaxMigDeviceCount", c_uint, gpu)
        except Refused:
            return {}, set()
        for index in range(most):
            try:
                found[index] = self.handle("nvmlDeviceGetMigDeviceHandleByIndex", gpu, c_uint(index))
            except Refused as refused:
                codes.add(refused.code)
        return found, codes

    def slice(self, device):
        """UUID and IDs of a MIG device."""
        return {
            "uuid": self.text("nvmlDeviceGetUUID", device),
            "gi": self.get("nvmlDeviceGetGpuInstanceId", c_uint, device),
            "ci": self.get("nvmlDeviceGetComputeInstanceId", c_uint, device),
        }

    def profiles(self, gpu):
        """GPU instance profiles: ID, size, and how many fit."""
        found = []
        for number in range(64):
            try:
                found.append(self.get("nvmlDeviceGetGpuInstanceProfileInfo", GpuProfile, gpu, c_uint(number)))
            except Refused:
                continue
        return found

    def instances(self, gpu):
        """Handles and placements of GPU instances."""
        found = []
        for profile in self.profiles(gpu):
            for handle in self.list("nvmlDeviceGetGpuInstances", c_void_p, gpu, c_uint(profile.id)):
                found.append((handle, self.get("nvmlGpuInstanceGetInfo", GpuInstanceInfo, handle)))
        return found

    def compute_profiles(self, instance):
        found = []
        for number in range(16):
            try:
                found.append(self.get("nvmlGpuInstanceGetComputeInstanceProfileInfo", ComputeProfile,
                                      instance, c_uint(number), c_uint(0)))
            except Refused:
                continue
        return found

    def compute_instances(self, instance):
        found = []
        for profile in self.compute_profiles(instance):
            handles = self.list("nvmlGpuInstanceGetComputeInstances", c_void_p, instance, c_uint(profile.id))
            found.extend(handles)
        return found

    def field(self, gpu, number):
        """A field's value, or the code in its place."""
        field = Field(id=number)
        code = self.code("nvmlDeviceGetFieldValues", gpu, c_int(1), byref(field))
        if code == "SUCCESS":
            code = CODES.get(field.code, str(field.code))
        # Only unsigned int is asked for: 1. Others have 8 bytes.
        value = field.value & 0xFFFFFFFF if field.type == 1 else field.value
        return value if code == "SUCCESS" else code

    def events(self, kinds, gpus):
        """A set of these events; the caller frees it. Codes of the registrations, too."""
        events = self.handle("nvmlEventSetCreate")
        codes = [self.code("nvmlDeviceRegisterEvents", gpu, c_ulonglong(kinds), events) for gpu in gpus]
        return events, codes

    def wait(self, events, ms):
        """The next event, or `None`."""
        event = Event()
        code = self.code("nvmlEventSetWait_v2", events, byref(event), c_uint(ms))
        if code == "TIMEOUT":
            return None
        if code != "SUCCESS":
            raise Refused("nvmlEventSetWait_v2", code)
        return event
