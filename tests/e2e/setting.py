"""What a case has in its hands, and the states that cases begin with."""

import json

import fake_node
from cluster import NODE
from pods import Pods
from wait import Failed, until, until_equal


class Setting:
    """The cluster, its node's GPUs, the plugin, and pods."""

    def __init__(self, cluster, node, plugin, image):
        self.cluster, self.node, self.plugin, self.image = cluster, node, plugin, image
        self.pods = Pods(cluster)
        # The values that the chart is installed with.
        self.values = None

    def begin(self, gpus, expected, **values):
        """No pods, these GPUs, and the plugin with these values, offering what is expected."""
        self.pods.delete_all()
        self.node.lay_out(gpus)
        self.install(**values)
        # Numbers may be the same before and after: what the kubelet offers has to be of this layout.
        until("the kubelet to offer none of an earlier layout's slices", lambda: self.offered() <= set(self.node.slices()))
        self.wait_for_allocatable(expected)

    def install(self, **values):
        """The plugin with these values; nothing is done where that is so already."""
        values = {"migStrategy": "mixed"} | values
        if values != self.values:
            self.values = None
            self.plugin.install(values)
            self.values = values

    def uninstall(self):
        self.values = None
        self.plugin.uninstall()

    def begin_with_sevens(self, **values):
        """Eight GPUs with seven slices each."""
        self.begin(fake_node.SEVENS, {"nvidia.com/mig-1g.10gb": 56}, **values)

    def begin_mixed(self, **values):
        """Eight GPUs, each in another way."""
        self.begin(fake_node.MIXED, {
            "nvidia.com/gpu": 3, "nvidia.com/mig-1g.10gb": 9, "nvidia.com/mig-1g.10gb.me": 1, "nvidia.com/mig-1g.20gb": 1,
            "nvidia.com/mig-2g.20gb": 2, "nvidia.com/mig-3g.40gb": 2, "nvidia.com/mig-4g.40gb": 1, "nvidia.com/mig-7g.80gb": 1,
        }, **values)

    def devices(self, which):
        """The node's `capacity` or `allocatable`: NVIDIA's resources, without those that have come to nothing."""
        status = self.cluster.get("node", NODE)["status"][which]
        return {name: int(count) for name, count in status.items() if name.startswith("nvidia.com/") and count != "0"}

    def wait_for_allocatable(self, expected, seconds=120):
        until_equal("allocatable", expected, lambda: self.devices("allocatable"), seconds)

    def offered(self):
        """The MIG devices that the kubelet may give away, from its checkpoint."""
        try:
            checkpoint = json.loads((self.cluster.plugins / "kubelet_internal_checkpoint").read_text())
        except FileNotFoundError:
            # No plugin has registered yet.
            return set()
        devices = (device for group in (checkpoint["Data"]["RegisteredDevices"] or {}).values() for device in group)
        # A replica has a number after its device's name.
        return {device.partition("::")[0] for device in devices if device.startswith("MIG-")}

    def save_evidence(self, case):
        """Writes down what may tell why a case failed."""
        folder = self.cluster.log / case.replace(" ", "-").replace("/", "-")
        folder.mkdir(exist_ok=True)
        everything = ["pods", "events", "daemonsets", "nodes", "--all-namespaces", "-o", "yaml"]
        for name, look in {
            "objects.yaml": lambda: self.cluster.kubectl("get", *everything),
            "plugin.log": self.plugin.log,
            "plugin-before.log": lambda: self.plugin.log(previous=True),
            "plugins": lambda: "\n".join(path.name for path in self.cluster.plugins.iterdir()),
            "pods": lambda: self.cluster.kubectl("get", "pods", "--all-namespaces", "-o", "wide"),
        }.items():
            try:
                (folder / name).write_text(look())
            except (Failed, OSError) as error:
                (folder / name).write_text(f"not to be had: {error}")
