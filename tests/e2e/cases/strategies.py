"""The strategy changes under running pods: a GPU that a pod holds as a whole is not given away in slices, nor the
other way round."""

import json

from fake_node import mig
from wait import expect, expect_equal, until

SMALL = "nvidia.com/mig-1g.10gb"
WHOLE = "nvidia.com/gpu"
GPUS = [mig(*["1g.10gb"] * 7)] * 2


def by_upgrade(setting):
    setting.begin(GPUS, {WHOLE: 2}, migStrategy="none")
    change(setting, lambda strategy: setting.install(migStrategy=strategy))


def by_config_map(setting):
    def config(strategy):
        return {"version": "v1", "flags": {"migStrategy": strategy}}
    values = {"migStrategy": None, "config": {"map": {"default": json.dumps(config("none"))}}}
    setting.begin(GPUS, {WHOLE: 2}, **values)
    plugin = setting.plugin.pod()["metadata"]["name"]
    change(setting, lambda strategy: setting.plugin.edit_config(config(strategy)))
    expect_equal("the plugin's pod", plugin, setting.plugin.pod()["metadata"]["name"])
    # The config map is not what these values say any more.
    setting.values = None


def change(setting, to):
    """From none to mixed, to none, to single, to mixed; `to` changes the strategy."""
    pods = setting.pods
    pods.run("whole", resource=WHOLE)
    before = pods.container("whole")
    held = setting.node.gpus().index(pods.device("whole"))

    to("mixed")
    setting.wait_for_allocatable({SMALL: 7})
    slices = [f"slice-{number}" for number in range(8)]
    pods.make(*slices, resource=SMALL)
    pods.wait_until_ready(*running(setting, slices, 7))
    expect_equal("the GPUs of seven slices", {1 - held}, gpus_of(setting, running(setting, slices, 7)))
    expect_equal("the container on the whole GPU", before, pods.container("whole"))
    pods.delete("whole")
    pods.wait_until_ready(*slices)
    last, = (name for name in slices if gpu_of(setting, name) == held)

    to("none")
    setting.wait_for_allocatable({})
    pods.make("waits", resource=WHOLE)
    pods.wait_for_event("waits", f"Insufficient {WHOLE}")
    pods.delete(last)
    pods.wait_until_ready("waits")
    expect_equal("the GPU of the pod that waited", setting.node.gpus()[held], pods.device("waits"))

    to("single")
    pods.delete(*(name for name in slices if name != last))
    setting.wait_for_allocatable({WHOLE: 7})
    pods.run("single", resource=WHOLE)
    expect_equal("the GPU of the slice", 1 - held, gpu_of(setting, "single"))
    pods.delete("waits")
    setting.wait_for_allocatable({WHOLE: 14})

    to("mixed")
    setting.wait_for_allocatable({SMALL: 13})
    pods.delete("single")
    setting.wait_for_allocatable({SMALL: 14})


def running(setting, names, count):
    """So many of these pods that have a device; the others wait."""
    def found():
        assigned = setting.pods.assigned()
        return chosen if len(chosen := [name for name in names if name in assigned]) >= count else None
    chosen = until(f"{count} pods with devices", found)
    expect(len(chosen) == count, f"{len(chosen)} pods have devices, and {count} should")
    return chosen


def gpu_of(setting, pod):
    return setting.node.slices()[setting.pods.device(pod)].gpu


def gpus_of(setting, pods):
    return {gpu_of(setting, pod) for pod in pods}


CASES = {
    "the strategy changes under running pods, by helm upgrade": by_upgrade,
    "the strategy changes under running pods, by the config map": by_config_map,
}
