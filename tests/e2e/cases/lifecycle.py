"""The plugin, the kubelet, the container runtime and the node end and start again."""

import signal
import threading
import time

from plugin import NAMESPACE, PROGRAM
from wait import Failed, expect, expect_equal, until, until_equal

SMALL = "nvidia.com/mig-1g.10gb"
ALL = {SMALL: 56}
# It opens its GPU ten times a second and says what it was told when that was refused or the node was gone. A node
# behind which there is no driver answers "No such device or address", and that is the answer to a node that is there.
WATCH = """
echo "device $NVIDIA_VISIBLE_DEVICES"
gpu=$(echo /dev/nvidia[0-9]*)
while :; do
    answer=$( (: <"$gpu") 2>&1)
    case $answer in '' | *'No such device or address') ;; *) echo "LOST $answer" ;; esac
    usleep 100000
done
"""


class Bystander:
    """A pod that has a slice and must notice nothing."""

    def __init__(self, setting):
        self.setting = setting
        setting.begin_with_sevens()
        setting.pods.run("bystander", resource=SMALL, script=WATCH)
        self.before = self._state()

    def _state(self):
        pods = self.setting.pods
        return pods.container("bystander"), pods.device("bystander"), pods.assigned()["bystander"]

    def check(self):
        """It still has what it had; and another pod gets a slice, and another one than this."""
        expect_equal("the running pod's container and slice", self.before, self._state())
        log = self.setting.cluster.kubectl("logs", "bystander")
        expect("LOST" not in log, f"the running pod lost its device: {log[-500:]}")
        self.setting.pods.run("newcomer", resource=SMALL)
        expect(self.setting.pods.device("newcomer") != self.before[1], "a new pod was given the slice that is in use")


class Gap:
    """How long allocatable was less than it should be, as the node's status shows it."""

    def __init__(self, setting):
        self.setting, self.gap, self.least, self.capacity = setting, 0.0, 56, 56
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        last = time.monotonic()
        while not self.stopping.wait(0.2):
            try:
                now = self.setting.devices("allocatable").get(SMALL, 0)
                self.capacity = min(self.capacity, self.setting.devices("capacity").get(SMALL, 0))
            except Failed:
                continue
            if now < 56:
                self.gap += time.monotonic() - last
            self.least, last = min(self.least, now), time.monotonic()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()

    def __str__(self):
        return f"allocatable below 56 for {self.gap:.1f} s, lowest {self.least}; lowest capacity {self.capacity}"


def kubelet_restart(setting):
    bystander = Bystander(setting)
    sockets = setting.plugin.sockets()
    setting.cluster.stop("kubelet")
    started = time.monotonic()
    setting.cluster.start("kubelet")
    until("a new socket of the plugin", lambda: (now := setting.plugin.sockets()) and now != sockets)
    # What the node's status says may be from before the restart: a pod is the proof.
    bystander.check()
    setting.wait_for_allocatable(ALL)
    return f"a pod ran with a new slice {time.monotonic() - started:.1f} s after the kubelet's start"


def kubelet_killed_thrice(setting):
    bystander = Bystander(setting)
    for _ in range(3):
        setting.cluster.restart("kubelet", signal.SIGKILL)
    until_equal("the plugin's sockets", 1, lambda: len(setting.plugin.sockets()))
    bystander.check()
    setting.wait_for_allocatable(ALL)


def containerd_restart(setting):
    bystander = Bystander(setting)
    before = setting.cluster.pids_of(PROGRAM)
    setting.cluster.restart("containerd", signal.SIGKILL)
    bystander.check()
    expect_equal("the plugin's process", before, setting.cluster.pids_of(PROGRAM))
    setting.wait_for_allocatable(ALL)


def plugin_killed(setting):
    bystander = Bystander(setting)
    with Gap(setting) as gap:
        setting.plugin.kill()
        bystander.check()
        setting.wait_for_allocatable(ALL)
    expect_equal("lowest capacity", 56, gap.capacity)
    until_equal("the plugin's sockets", 1, lambda: len(setting.plugin.sockets()))
    return str(gap)


def rolling_update(setting):
    bystander = Bystander(setting)
    old = setting.plugin.pod()["metadata"]["name"]
    with Gap(setting) as gap:
        setting.install(podAnnotations={"e2e": "updated"})
        expect(setting.plugin.pod()["metadata"]["name"] != old, "the DaemonSet's pod was not replaced")
        bystander.check()
        setting.wait_for_allocatable(ALL)
    expect_equal("lowest capacity", 56, gap.capacity)
    until_equal("the plugin's sockets", 1, lambda: len(setting.plugin.sockets()))
    return str(gap)


def reboot(setting):
    """The node loses power, and the pod is there before the plugin."""
    setting.begin_with_sevens()
    setting.pods.run("before", resource=SMALL)
    device = setting.pods.device("before")
    selector = '{"spec": {"template": {"spec": {"nodeSelector": %s}}}}'
    kubectl = setting.cluster.kubectl
    setting.values = None
    kubectl("patch", "--namespace", NAMESPACE, "daemonset/mig-device-plugin", "--patch", selector % '{"e2e": "nowhere"}')
    until("the plugin's end", lambda: not setting.cluster.pids_of(PROGRAM))
    setting.cluster.power_off()
    setting.cluster.boot()
    outcome = until("the pod to run again or to be refused", lambda: settled(setting))
    kubectl("patch", "--namespace", NAMESPACE, "daemonset/mig-device-plugin", "--patch", selector % "null")
    setting.plugin.wait_until_rolled_out()
    setting.wait_for_allocatable(ALL)
    names = [f"pod-{number:02}" for number in range(1, 56)]
    if outcome == "Running":
        expect_equal("the slice of the pod that was there before", device, setting.pods.device("before"))
        setting.pods.run(*names, resource=SMALL, seconds=300)
        devices = until("the logs of 56 pods", lambda: (found := setting.pods.devices()) and len(found) == 56 and found)
        expect_equal("slices in use, each once", set(setting.node.slices()), set(devices.values()))
        return "the pod ran before the plugin did, with its old slice; no other pod got that"
    setting.pods.run("after", resource=SMALL)
    return f"this kubelet refuses the pod until the plugin is there ({outcome}); a new pod runs"


def settled(setting):
    """Running again after the boot, or the reason why not."""
    status = setting.pods.get("before")["status"]
    if status["phase"] == "Failed":
        return status.get("reason", "Failed")
    containers = status.get("containerStatuses", [])
    again = containers and containers[0]["restartCount"] > 0 and "running" in containers[0]["state"]
    return "Running" if again else None


def uninstall(setting):
    setting.begin_with_sevens()
    setting.pods.run("stays", resource=SMALL)
    before = setting.pods.container("stays")
    setting.uninstall()
    until_equal("the plugin's sockets", [], setting.plugin.sockets, 30)
    setting.wait_for_allocatable({})
    expect_equal("the pod's container", before, setting.pods.container("stays"))
    left = sorted(path.name for path in setting.cluster.plugins.iterdir() if path.is_socket())
    expect_equal("sockets in the kubelet's folder", ["kubelet.sock"], left)


CASES = {
    "the kubelet restarts": kubelet_restart,
    "the kubelet is killed three times in a row": kubelet_killed_thrice,
    "containerd is killed and starts again": containerd_restart,
    "the plugin is killed": plugin_killed,
    "the DaemonSet is updated": rolling_update,
    "the node loses power, and boots without the plugin": reboot,
    "the plugin is uninstalled": uninstall,
}
