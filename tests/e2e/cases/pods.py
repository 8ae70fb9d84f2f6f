"""What pods get."""

import json
from pathlib import Path

from fake_node import CONTROL, mig
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


def two_in_one(setting):
    """A container that asks for two: both on one GPU, since the plugin prefers that and the kubelet heeds it."""
    setting.begin_with_sevens()
    setting.pods.run("two", resource=SMALL, count=2)
    slices = setting.node.slices()
    got = [slices[uuid] for uuid in setting.pods.device("two").split(",")]
    expect_equal("slices", 2, len({one.uuid for one in got}))
    expect_equal("GPUs that they are on", 1, len({one.gpu for one in got}))
    expect_equal("the device nodes", got[0].nodes | got[1].nodes | CONTROL, setting.pods.nodes("two"))


def container_restart(setting):
    setting.begin_mixed()
    resource = "nvidia.com/mig-3g.40gb"
    # The file is gone with the container.
    script = "until [ -e /end ]; do usleep 100000; done"
    setting.pods.run("again", resource=resource, script=script)
    before = setting.pods.device("again"), setting.pods.nodes("again")
    setting.pods.execute("again", "touch /end")
    until("the container's second start", lambda: setting.pods.container("again")[1] == 1)
    setting.pods.wait_until_ready("again")
    expect_equal("what the container has", before, (setting.pods.device("again"), setting.pods.nodes("again")))


def cdi(setting):
    """The answer has a name, and the container runtime looks up what it means."""
    runtime = setting.cluster.runtime()
    if setting.cluster.version() < (1, 28) or runtime < (2, 0):
        return "skipped", f"CDI needs Kubernetes 1.28 and, without configuration, containerd 2.0; this is {runtime[0]}.{runtime[1]}"
    setting.begin_mixed(deviceListStrategy="cdi-cri")
    setting.pods.run("cdi", resource="nvidia.com/mig-2g.20gb")
    expect_equal("the variable", "void", setting.pods.device("cdi"))
    uuid, = setting.pods.assigned()["cdi"]
    wanted = setting.node.slices()[uuid].nodes | CONTROL
    expect_equal("the device nodes in the container", wanted, setting.pods.nodes("cdi"))
    allowed = setting.pods.may_open("cdi", setting.node.device_nodes())
    expect_equal("the device nodes that the control group allows", wanted, allowed)
    return f"containerd {runtime[0]}.{runtime[1]} resolved the name to {len(wanted)} nodes"


def shared(setting):
    """Two replicas of one slice, in two pods, by the config file."""
    resource = "nvidia.com/mig-3g.40gb"
    config = {"version": "v1", "sharing": {"timeSlicing": {"resources": [{"name": resource, "replicas": 2}]}}}
    setting.begin([mig("3g.40gb")], {resource: 2}, config={"map": {"default": json.dumps(config)}})
    setting.pods.run("first", "second", resource=resource)
    expect_equal("the slices of both", set(setting.node.slices()), {setting.pods.device("first"), setting.pods.device("second")})
    expect_equal("their nodes", setting.pods.nodes("first"), setting.pods.nodes("second"))
    setting.pods.make("third", resource=resource)
    setting.pods.wait_for_event("third", f"Insufficient {resource}")


def numa(setting):
    """One GPU on the machine's only NUMA node, one on a node that it has not: the hints decide."""
    policy = setting.cluster.policy
    if policy not in ("best-effort", "restricted"):
        # On a machine with one NUMA node, single-numa-node takes the only choice there is for no choice.
        return "skipped", "with --topology=best-effort or restricted only"
    if Path("/sys/devices/system/node/online").read_text().strip() != "0":
        return "skipped", "this machine has several NUMA nodes"
    near, far = ({**mig("3g.40gb"), "numa": node} for node in (0, 1))
    resource = "nvidia.com/mig-3g.40gb"
    # The far one first, so that the order of the list does not decide.
    setting.begin([far, near], {resource: 2})
    pod = {"resource": resource, "resources": {"cpu": "100m", "memory": "16Mi"}}
    setting.pods.run("near", **pod)
    expect_equal("the GPU of the first pod", 1, setting.node.slices()[setting.pods.device("near")].gpu)
    setting.pods.make("far", **pod)
    if policy == "best-effort":
        setting.pods.wait_until_ready("far")
        return "the near slice went first, then the far one"
    until("the second pod to be refused", lambda: setting.pods.get("far")["status"]["phase"] == "Failed")
    expect_equal("the reason", "TopologyAffinityError", setting.pods.get("far")["status"]["reason"])
    return "the near slice was given away, the far one refused: TopologyAffinityError"


def all_of(found, count):
    return found if len(found) == count else None


CASES = {
    "a pod gets one slice, and nothing else": exact,
    "a container gets two slices": two_in_one,
    "a container that starts again keeps its slice": container_restart,
    "a slice by its CDI name": cdi,
    "two pods share a slice": shared,
    "NUMA hints": numa,
    "56 pods on 56 slices, the 57th waits for one to go": full,
}
