"""What the node shows."""

import re

from fake_node import MIXED
from wait import expect, expect_equal, until


def mixed(setting):
    setting.begin_mixed()
    expect_equal("capacity", setting.devices("allocatable"), setting.devices("capacity"))


def single(setting):
    # The profile with the most slices; whole GPUs are withheld beside MIG ones.
    check(setting, "single", 9)


def none(setting):
    check(setting, "none", 8)


def check(setting, strategy, gpus):
    setting.begin(MIXED, {"nvidia.com/gpu": gpus}, migStrategy=strategy)
    expect_equal("capacity of nvidia.com/gpu", gpus, setting.devices("capacity")["nvidia.com/gpu"])


def over_http(setting):
    """What the plugin says of itself agrees with the node and with the pod that holds a slice."""
    setting.begin_mixed()
    setting.pods.run("seen", resource="nvidia.com/mig-2g.20gb")
    uuid = setting.pods.device("seen")
    setting.plugin.page("/livez")
    setting.plugin.page("/readyz")

    def holder():
        return re.findall(r'^mig_device_plugin_device_holder_info\{(.*)\} 1', setting.plugin.page("/metrics"), re.M)
    # The kubelet is asked every 10 s at most.
    seen, = until("a pod that holds a slice in /metrics", holder, 60)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', seen))
    names = {"namespace": "default", "pod": "seen", "container": "main"}
    expect_equal("the holder", {"uuid": uuid} | names | {f"holder_{key}": name for key, name in names.items()}, labels)
    metrics = setting.plugin.page("/metrics")
    for metric, which in (("capacity", "capacity"), ("allocatable", "allocatable")):
        told = re.findall(rf'^mig_device_plugin_{metric}\{{resource="(.*)"\}} (\d+)$', metrics, re.M)
        expect_equal(metric, setting.devices(which), {resource: int(count) for resource, count in told})
    expect(uuid in setting.plugin.page("/devices"), "/devices does not show the slice")
    expect("default/seen" in setting.plugin.page("/"), "the page does not show the pod")


CASES = {
    "strategy single: the commonest profile as nvidia.com/gpu": single,
    "strategy none: whole GPUs": none,
    "strategy mixed: each profile under its own name": mixed,
    "what HTTP says: probes, metrics, the pod that holds a slice": over_http,
}
