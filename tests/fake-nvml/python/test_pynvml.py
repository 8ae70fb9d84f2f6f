"""The fake, seen by nvidia-ml-py. Started by `run`, which makes the node and sets NODE and FAKE_NVML."""

import os
import pathlib
import subprocess
import threading
import time
import unittest

import pynvml as nvml

NODE = pathlib.Path(os.environ["NODE"])
DESCRIPTION = NODE / "node.yaml"


def setUpModule():
    # It opens "libnvidia-ml.so.1" by name: `run` has the loader look in the node first.
    nvml.nvmlInit()


def tearDownModule():
    nvml.nvmlShutdown()


def migs(gpu):
    """MIG devices of a GPU, as every lister finds them."""
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index))
        except nvml.NVMLError_NotFound:
            pass
    return found


class Listing(unittest.TestCase):
    def test_driver(self):
        self.assertEqual(nvml.nvmlSystemGetDriverVersion(), "580.95.05")
        self.assertEqual(nvml.nvmlSystemGetCudaDriverVersion(), 13000)

    def test_gpus(self):
        self.assertEqual(nvml.nvmlDeviceGetCount(), 8)
        gpu = nvml.nvmlDeviceGetHandleByIndex(1)
        self.assertEqual(nvml.nvmlDeviceGetName(gpu), "NVIDIA H100 80GB HBM3")
        self.assertEqual(nvml.nvmlDeviceGetUUID(gpu), "GPU-0c9105b4-cad7-5922-9f0d-e029e8b370f9")
        self.assertEqual(nvml.nvmlDeviceGetMinorNumber(gpu), 1)
        self.assertEqual(nvml.nvmlDeviceGetPciInfo(gpu).busId, "00000000:20:00.0")
        self.assertEqual(nvml.nvmlDeviceGetMemoryInfo(gpu).total, 81559 * 1024 * 1024)
        self.assertEqual(nvml.nvmlDeviceGetMemoryInfo(gpu, nvml.nvmlMemory_v2).total, 81559 * 1024 * 1024)
        self.assertEqual(nvml.nvmlDeviceGetMigMode(gpu), [1, 1])
        self.assertEqual(nvml.nvmlDeviceGetCudaComputeCapability(gpu), (9, 0))
        self.assertEqual(nvml.nvmlDeviceGetComputeRunningProcesses(gpu), [])

    def test_mig_devices(self):
        gpu = nvml.nvmlDeviceGetHandleByIndex(1)
        seen = [
            (
                nvml.nvmlDeviceGetName(mig),
                nvml.nvmlDeviceGetGpuInstanceId(mig),
                nvml.nvmlDeviceGetComputeInstanceId(mig),
                nvml.nvmlDeviceGetAttributes(mig).memorySizeMB,
            )
            for mig in migs(gpu)
        ]
        name = "NVIDIA H100 80GB HBM3 MIG "
        self.assertEqual(
            seen,
            [
                (name + "3g.40gb", 1, 0, 40448),
                (name + "2g.20gb", 3, 0, 20096),
                (name + "1g.10gb", 7, 0, 9984),
                (name + "1g.10gb", 8, 0, 9984),
            ],
        )
        first = migs(gpu)[0]
        self.assertEqual(nvml.nvmlDeviceGetUUID(first), "MIG-3e8650ec-c8ec-5c91-9802-5070b2fb1566")
        self.assertTrue(nvml.nvmlDeviceIsMigDeviceHandle(first))
        parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(first)
        self.assertEqual(nvml.nvmlDeviceGetIndex(parent), 1)

    def test_profiles_and_placements(self):
        gpu = nvml.nvmlDeviceGetHandleByIndex(1)
        info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, nvml.NVML_GPU_INSTANCE_PROFILE_3_SLICE, 2)
        self.assertEqual((info.id, info.multiprocessorCount, info.memorySizeMB), (9, 60, 40448))
        instance = nvml.nvmlDeviceGetGpuInstanceById(gpu, 1)
        placement = nvml.nvmlGpuInstanceGetInfo(instance).placement
        self.assertEqual((placement.start, placement.size), (4, 4))
        compute = nvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
        self.assertEqual(nvml.nvmlComputeInstanceGetInfo(compute).id, 0)

    def test_fields(self):
        gpu = nvml.nvmlDeviceGetHandleByIndex(0)
        value = nvml.nvmlDeviceGetFieldValues(gpu, [230])[0]
        self.assertEqual((value.nvmlReturn, value.value.uiVal), (0, 0))

    def test_errors(self):
        with self.assertRaises(nvml.NVMLError_InvalidArgument):
            nvml.nvmlDeviceGetHandleByIndex(8)
        with self.assertRaises(nvml.NVMLError_NotFound):
            nvml.nvmlDeviceGetHandleByUUID("GPU-none")
        self.assertEqual(nvml.nvmlErrorString(nvml.NVML_ERROR_GPU_IS_LOST), "GPU is lost")


class Running(unittest.TestCase):
    """What changes while the library is loaded."""

    def test_an_edit_is_seen_and_destroys_handles(self):
        gpu = nvml.nvmlDeviceGetHandleByIndex(3)
        before = migs(gpu)
        text = DESCRIPTION.read_text()
        try:
            # Back to the recording's UUIDs afterwards; here only the 3g.40gb goes.
            at = text.index("MIG-65bdd401-7cdb-5371-a5d4-222f2b3d0005")
            start = text.rindex("\n  - profile", 0, at)
            DESCRIPTION.write_text(text[:start] + text[text.index("\n", at):])
            self.assertEqual(len(migs(gpu)), 1)
            with self.assertRaises(nvml.NVMLError_InvalidArgument):
                nvml.nvmlDeviceGetUUID(before[1])
            capabilities = NODE / "proc/driver/nvidia/capabilities/gpu3/mig"
            self.assertEqual([path.name for path in capabilities.iterdir()], ["gi1"])
        finally:
            DESCRIPTION.write_text(text)
        self.assertEqual(len(migs(gpu)), 2)

    def test_an_event_wakes_a_waiting_client(self):
        gpu = nvml.nvmlDeviceGetHandleByIndex(0)
        events = nvml.nvmlEventSetCreate()
        nvml.nvmlDeviceRegisterEvents(gpu, nvml.nvmlEventTypeXidCriticalError, events)
        with self.assertRaises(nvml.NVMLError_Timeout):
            nvml.nvmlEventSetWait_v2(events, 0)
        command = [os.environ["FAKE_NVML"], "event", str(NODE), "--gi", "7", "--ci", "0", "--xid", "94"]
        sender = threading.Timer(0.1, subprocess.run, [command])
        sender.start()
        started = time.monotonic()
        event = nvml.nvmlEventSetWait_v2(events, 10_000)
        self.assertLess(time.monotonic() - started, 5)
        sender.join()
        self.assertEqual((event.eventData, event.gpuInstanceId, event.computeInstanceId), (94, 7, 0))
        nvml.nvmlEventSetFree(events)

    def test_calls_are_counted(self):
        nvml.nvmlDeviceGetCount()
        counters = subprocess.run(
            [os.environ["FAKE_NVML"], "counters", str(NODE)], capture_output=True, check=True, text=True
        )
        self.assertIn("nvmlDeviceGetCount_v2", counters.stdout)


if __name__ == "__main__":
    unittest.main()
