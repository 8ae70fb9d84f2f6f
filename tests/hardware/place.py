"""Where the driver's files are, and what this process may do."""

import os
import re
from pathlib import Path

LIBRARY_FOLDERS = ["usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/local/nvidia/lib64",
                   "home/kubernetes/bin/nvidia/lib64", "usr/lib/x86_64-linux-gnu/nvidia/current"]
CAP_SYS_ADMIN = 21


class Place:
    """A driver root: `/`, where one is mounted, or a fake node's folder."""

    def __init__(self, root, library=None):
        self.root = Path(root)
        self._library = library

    def below(self, path):
        here = self.root / path
        return here if here.exists() or self.root != Path("/") else Path("/") / path

    @property
    def library(self):
        if self._library:
            return self._library
        for folder in LIBRARY_FOLDERS:
            path = self.root / folder / "libnvidia-ml.so.1"
            if path.exists():
                return str(path)
        return "libnvidia-ml.so.1"

    @property
    def is_fake(self):
        return (self.root / "node.yaml").exists() and (self.root / "fake-nvml").is_dir()

    def capability(self, minor, gi, ci=None):
        path = f"proc/driver/nvidia/capabilities/gpu{minor}/mig/gi{gi}"
        return self.below(path if ci is None else f"{path}/ci{ci}") / "access"

    def minors(self):
        """Minors of capability nodes by name, such as `gpu0/gi7/access`."""
        try:
            lines = self.below("proc/driver/nvidia-caps/mig-minors").read_text().split("\n")
        except OSError:
            return {}
        return {name: int(minor) for name, _, minor in (line.partition(" ") for line in lines) if minor}

    def node(self, minor):
        return self.below("dev/nvidia-caps") / f"nvidia-cap{minor}"

    def numa_node(self, address):
        domain, _, rest = address.lower().partition(":")
        name = f"{int(domain or '0', 16):04x}:{rest}"
        try:
            return int((self.below("sys/bus/pci/devices") / name / "numa_node").read_text())
        except (OSError, ValueError):
            return None


    def rights(self):
        """What this process may do, by the driver's rules: of `admin`, `config` and `monitor`."""
        # A fake node plays the process's own files, too.
        own = self.root / "proc/self" if self.is_fake else Path("/proc/self")
        held = int(re.search(r"^CapEff:\s*(\w+)", (own / "status").read_text(), re.M).group(1), 16)
        initial = (own / "uid_map").read_text().split() == ["0", "0", "4294967295"]
        rights = ["admin"] if held >> CAP_SYS_ADMIN & 1 and initial else []
        minors = self.minors()
        return rights + [name for name in ("config", "monitor")
                         if name in minors and can_open(self.node(minors[name])) == "yes"]


def can_open(path):
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return os.strerror(error.errno)
    return "yes"




def open_nodes():
    """NVIDIA's device nodes that this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if "/dev/nvidia" in target:
            found.add("/dev/nvidia" + target.split("/dev/nvidia", 1)[1])
    return sorted(found)


def resident_kib():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmRSS:\s*(\d+)", status, re.M).group(1))


def stamp(path):
    status = os.stat(path)
    return status.st_ino, status.st_ctime_ns
