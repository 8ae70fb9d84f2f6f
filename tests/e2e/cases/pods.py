"""What pods get."""

from fake_node import CONTROL
from wait import expect, expect_equal, until

SMALL = "nvidia.com/mig-1g.10gb"


def exact(setting):
    setting.begin_mixed()
    setting.pods.run("one", resource="nvidia.com/mig-2g.20gb")
    uuid = setting.pods.device("one")
    slices = setting.node.slices()
    expect(uuid in slices, f"the variable says {uuid}, which no slice is called")
    expect_equal("the slice's profile", "2g.20gb", slices[uuid].profile)
    wanted = slices[uuid].nodes | CONTROL
    expect_equal("the device nodes in the container", wanted, setting.pods.nodes("one"))
    everything = setting.node.device_nodes()
    allowed = setting.pods.may_open("one", everything)
    expect_equal("the device nodes that the control group allows", wanted, allowed)
    return f"{len(wanted)} nodes, {len(everything) - len(wanted)} others refused"


def full(setting):
    setting.begin_with_sevens()
    names = [f"pod-{number:02}" for number in range(1, 57)]
    setting.pods.run(*names, resource=SMALL, seconds=300)
    devices = until("the logs of 56 pods", lambda: all_of(setting.pods.devices(), 56))
    expect_equal("slices in use, each once", set(setting.node.slices()), set(devices.values()))
    expect_equal("what the kubelet wrote down", {pod: [device] for pod, device in devices.items()}, setting.pods.assigned())

    setting.pods.make("pod-57", resource=SMALL)
    setting.pods.wait_for_event("pod-57", f"Insufficient {SMALL}")
    expect_equal("the phase of the 57th pod", "Pending", setting.pods.get("pod-57")["status"]["phase"])

    setting.pods.delete("pod-23")
    setting.pods.wait_until_ready("pod-57")
    expect_equal("the slice of the pod that had waited", devices["pod-23"], setting.pods.device("pod-57"))


def all_of(found, count):
    return found if len(found) == count else None


CASES = {
    "a pod gets one slice, and nothing else": exact,
    "56 pods on 56 slices, the 57th waits for one to go": full,
}
