"""Layouts that change under running pods."""

from fake_node import mig
from wait import expect, expect_equal, until_equal

SMALL = "nvidia.com/mig-1g.10gb"
SEVEN = ["1g.10gb"] * 7


def another_gpu(setting):
    """Two GPUs: the one without a pod gets another layout, and another again."""
    setting.begin([mig(*SEVEN), mig(*SEVEN)], {SMALL: 14})
    setting.pods.run("stays", resource=SMALL)
    before = setting.pods.container("stays")
    used = setting.node.slices()[setting.pods.device("stays")].gpu
    layouts = [mig(*SEVEN), mig(*SEVEN)]
    layouts[1 - used] = mig("3g.40gb", "2g.20gb", "2g.20gb")
    setting.node.lay_out(layouts)
    setting.wait_for_allocatable({SMALL: 7, "nvidia.com/mig-3g.40gb": 1, "nvidia.com/mig-2g.20gb": 2})
    setting.pods.run("new", resource="nvidia.com/mig-3g.40gb")
    expect_equal("the new pod's profile", "3g.40gb", setting.node.slices()[setting.pods.device("new")].profile)
    setting.pods.delete("new")
    layouts[1 - used] = mig("7g.80gb")
    setting.node.lay_out(layouts)
    setting.wait_for_allocatable({SMALL: 7, "nvidia.com/mig-7g.80gb": 1})
    expect_equal("the pod's container", before, setting.pods.container("stays"))


def under_a_pod(setting):
    """The slice that a pod holds is destroyed: it stays listed as unhealthy until the pod has gone."""
    setting.begin([mig("3g.40gb", "3g.40gb")], {"nvidia.com/mig-3g.40gb": 2})
    setting.pods.run("holder", resource="nvidia.com/mig-3g.40gb")
    held = setting.node.slices()[setting.pods.device("holder")]
    setting.node.lay_out([mig("2g.20gb", "2g.20gb", "2g.20gb")])
    setting.wait_for_allocatable({"nvidia.com/mig-2g.20gb": 3})
    # Its neighbour, which no pod holds, leaves the list.
    with_held = {"nvidia.com/mig-2g.20gb": 3, "nvidia.com/mig-3g.40gb": 1}
    until_equal("capacity", with_held, lambda: setting.devices("capacity"))
    expect_equal("the pod's phase", "Running", setting.pods.get("holder")["status"]["phase"])
    setting.pods.run("next", resource="nvidia.com/mig-2g.20gb")
    expect(setting.pods.device("next") != held.uuid, "the new pod was given the UUID that the old one holds")
    setting.pods.delete("holder")
    # The kubelet tells of the release only when asked; the plugin asks at each look.
    until_equal("capacity", {"nvidia.com/mig-2g.20gb": 3}, lambda: setting.devices("capacity"), 120)


CASES = {
    "a layout changes on another GPU than the pod's": another_gpu,
    "a slice goes that a pod holds": under_a_pod,
}
