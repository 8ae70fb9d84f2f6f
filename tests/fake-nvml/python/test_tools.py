"""The fake, seen by tools that people watch GPUs with: nvitop and gpustat. Started by `run`, as test_pynvml.py is."""

import json
import os
import pathlib
import subprocess
import sys
import unittest

NODE = pathlib.Path(os.environ["NODE"])
DESCRIPTION = NODE / "node.yaml"


def run(*arguments):
    """What a tool of this Python says."""
    result = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(arguments)}: {result.stderr}")
    return result.stdout


class Tools(unittest.TestCase):
    def setUp(self):
        self.original = DESCRIPTION.read_text()
        # This very process uses a slice: tools look a process up in /proc, and show none that is not there.
        held = f"  processes: [{{ pid: {os.getpid()}, gi: 1, ci: 0, memoryMib: 512 }}]\n"
        slice_ = "uuid: GPU-0c9105b4-cad7-5922-9f0d-e029e8b370f9\n"
        self.assertIn(slice_, self.original)
        DESCRIPTION.write_text(self.original.replace(slice_, slice_ + held))

    def tearDown(self):
        DESCRIPTION.write_text(self.original)

    def test_nvitop(self):
        shown = run("nvitop", "--once", "--no-unicode")
        self.assertIn("Driver Version: 580.95.05", shown)
        self.assertIn("| 1:0      3g.40gb @ GI/CI: 1/0 |", shown)
        self.assertIn("512.0MiB / 39.50GiB", shown)
        self.assertEqual(shown.count(" @ GI/CI:"), 17, shown)
        self.assertIn(str(os.getpid()), shown)

    def test_gpustat(self):
        gpus = json.loads(run("gpustat", "--json"))["gpus"]
        self.assertEqual(len(gpus), 8)
        self.assertEqual(gpus[1]["uuid"], "GPU-0c9105b4-cad7-5922-9f0d-e029e8b370f9")
        self.assertEqual((gpus[1]["memory.used"], gpus[1]["memory.total"]), (512, 81559))
        self.assertEqual([process["pid"] for process in gpus[1]["processes"]], [os.getpid()])


if __name__ == "__main__":
    unittest.main()
