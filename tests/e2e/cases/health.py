"""Slices that fall ill, and get well again."""

from wait import expect, expect_equal, until

SMALL = "nvidia.com/mig-1g.10gb"
# A contained memory error: it counts by default.
XID = 94
# The minor version of Kubernetes.
STATUS_SINCE = 31


def xid(setting):
    setting.begin_with_sevens(healthRecovery="off")
    sick, container = make_sick(setting)
    expect_equal("the pod's container", container, setting.pods.container("patient"))
    expect_equal("capacity", 56, setting.devices("capacity")[SMALL])
    note = "allocatable 55 of 56"
    if setting.cluster.version()[1] >= STATUS_SINCE:
        def unhealthy():
            status = setting.pods.get("patient")["status"]["containerStatuses"][0].get("allocatedResourcesStatus", [])
            return [entry for entry in status for resource in entry["resources"]
                    if resource["resourceID"] == sick.uuid and resource["health"] == "Unhealthy"]
        until("the pod's allocatedResourcesStatus to say Unhealthy", unhealthy)
        note += ", allocatedResourcesStatus Unhealthy"
    sockets = setting.plugin.sockets()
    setting.cluster.restart("kubelet")
    until("a new socket of the plugin", lambda: setting.plugin.sockets() not in (sockets, []))
    names = [f"pod-{number:02}" for number in range(1, 56)]
    setting.pods.delete("patient")
    setting.pods.make(*names, "too-many", resource=SMALL)
    until("55 pods to be running", lambda: sum(pod["status"]["phase"] == "Running" for pod in setting.pods.list()) == 55, 300)
    devices = until("their logs", lambda: (found := setting.pods.devices()) and len(found) == 55 and found)
    expect(sick.uuid not in devices.values(), f"a pod was given the sick slice {sick.uuid}")
    return note + "; the same after a restart of the kubelet"


def recovery(setting):
    setting.begin_with_sevens(healthRecoveryQuiet="5s")
    _, container = make_sick(setting)
    setting.wait_for_allocatable({SMALL: 56})
    expect_equal("the pod's container", container, setting.pods.container("patient"))


def make_sick(setting):
    """A pod whose slice has an Xid: the slice and the pod's container."""
    setting.pods.run("patient", resource=SMALL)
    container = setting.pods.container("patient")
    sick = setting.node.slices()[setting.pods.device("patient")]
    setting.node.xid(XID, sick)
    setting.wait_for_allocatable({SMALL: 55})
    return sick, container


CASES = {
    "an Xid takes one slice away, also from a kubelet that restarts; its pod stays": xid,
    "a slice that stays quiet comes back": recovery,
}
