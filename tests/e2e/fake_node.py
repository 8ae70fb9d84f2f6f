"""The node's GPUs, as tests/fake-nvml plays them: a driver root with a library and real character devices."""

import json
import os
import re
import subprocess

H100 = "h100-80gb-sxm5"
# What every container with a device gets besides its own nodes.
CONTROL = {"nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools"}


def mig(*layout):
    """A GPU in MIG mode with these profiles."""
    return {"model": H100, "mig": True, "layout": [{"profile": profile} for profile in layout]}


def whole():
    """A GPU that is not in MIG mode."""
    return {"model": H100}


SEVENS = [mig(*["1g.10gb"] * 7)] * 8
MIXED = [mig(*["1g.10gb"] * 7), mig("3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb"), mig("7g.80gb"),
         mig("4g.40gb", "3g.40gb"), mig("1g.10gb+me", "1g.20gb", "2g.20gb"), whole(), whole(), whole()]


class Slice:
    """A MIG device: its UUID, its profile, and the names of its own device nodes."""

    def __init__(self, gpu, minor, fields):
        self.gpu = gpu
        self.profile, self.uuid = fields["profile"], fields["uuid"]
        self.gi, self.ci = int(fields["gi"]), int(fields["ci"])
        self.nodes = {f"nvidia{minor}"} | {f"nvidia-caps/nvidia-cap{fields[cap]}" for cap in ("gi_cap", "ci_cap")}


class FakeNode:
    """A folder that `fake-nvml` keeps."""

    def __init__(self, tool, root):
        self.tool, self.root = tool, root

    def lay_out(self, gpus, **rest):
        """Gives the node other GPUs, or the same with another layout or state."""
        description = self.root.parent / "node.json"
        description.write_text(json.dumps({"gpus": gpus} | rest))
        self._run("create", self.root, description)

    def xid(self, number, slice_):
        """Tells of an Xid on one slice."""
        self._run("event", self.root, "--gpu", slice_.gpu, "--gi", slice_.gi, "--ci", slice_.ci, "--xid", number)

    def slices(self):
        """All MIG devices by UUID."""
        found, gpu, minor = {}, None, None
        for line in self._run("list", self.root).splitlines():
            if head := re.match(r"GPU (\d+): .*, minor (\d+),", line):
                gpu, minor = int(head[1]), int(head[2])
            elif fields := re.match(r"\s+MIG (?P<profile>\S+)\s+Device \d+: \(UUID: (?P<uuid>\S+); GI (?P<gi>\d+), "
                                    r"CI (?P<ci>\d+), .* caps (?P<gi_cap>\d+) (?P<ci_cap>\d+)\)", line):
                found[fields["uuid"]] = Slice(gpu, minor, fields)
        return found

    def gpus(self):
        """The UUID of every GPU, by its index."""
        return re.findall(r"^GPU \d+: .*UUID: (GPU-[^;)\s,]+)", self._run("list", self.root), re.M)

    def device_nodes(self):
        """Every device node that the driver has made: its name below `dev`, with its major and minor numbers. Those of
        mig/config and mig/monitor are /dev/null by another name, which every container may open, and are left out."""
        nodes = {}
        for path in sorted((self.root / "dev").rglob("*")):
            if path.is_char_device() and path.stat().st_rdev != os.stat("/dev/null").st_rdev:
                number = path.stat().st_rdev
                nodes[str(path.relative_to(self.root / "dev"))] = (number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)
        return nodes

    def _run(self, *arguments):
        command = [str(word) for word in (self.tool, *arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
        return result.stdout
