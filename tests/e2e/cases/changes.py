"""Layouts that change under running pods."""

import re
import signal
import time

from fake_node import SEVENS, mig
from plugin import NAMESPACE, PROGRAM
from wait import expect, expect_equal, until, until_equal

SMALL = "nvidia.com/mig-1g.10gb"
SEVEN = ["1g.10gb"] * 7
TWOS = [mig("2g.20gb", "2g.20gb", "2g.20gb")]


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
    held = hold(setting)
    setting.node.lay_out(TWOS)
    with_held(setting)
    setting.pods.run("next", resource="nvidia.com/mig-2g.20gb")
    expect(setting.pods.device("next") != held.uuid, "the new pod was given the UUID that the old one holds")
    release(setting)


def behind_the_plugins_back(setting):
    """The same while the plugin is not there; then the kubelet restarts, which must find the device in the list."""
    hold(setting)
    before = setting.pods.container("holder")
    setting.uninstall()
    setting.node.lay_out(TWOS)
    setting.install()
    with_held(setting)
    sockets = setting.plugin.sockets()
    setting.cluster.restart("kubelet")
    until("the plugin's new sockets", lambda: len(now := setting.plugin.sockets()) == 2 and not set(now) & set(sockets))
    with_held(setting)
    expect_equal("the pod's container", before, setting.pods.container("holder"))
    release(setting)


def under_an_init_container(setting):
    """The same, held by an ordinary init container: podresources never names those, the checkpoint does."""
    setting.begin([mig("3g.40gb", "3g.40gb")], {"nvidia.com/mig-3g.40gb": 2})
    setting.pods.make("holder", resource="nvidia.com/mig-3g.40gb", script="until [ -e /end ]; do usleep 100000; done", init=True)
    until("the init container's device", lambda: "holder" in setting.pods.assigned())
    setting.node.lay_out(TWOS)
    setting.plugin.look()
    setting.wait_for_allocatable({"nvidia.com/mig-2g.20gb": 3})
    until_equal("capacity of twos and threes", (3, 1), lambda: capacity(setting))
    # Longer than the plugin waits for anything: 5 s since an allocation, and as long between two questions.
    time.sleep(20)
    expect_equal("capacity of twos and threes", (3, 1), capacity(setting))
    release(setting)


def without_the_api_server(setting):
    """The kubelet restarts while the API server is away. podresources then answers without the pods that run, and
    without an error: what they hold must stay listed."""
    hold(setting)
    before = setting.pods.container("holder")
    setting.node.lay_out(TWOS)
    with_held(setting)
    page = setting.plugin.address("/devices")
    gone, = set(re.findall(r"MIG-[0-9a-f-]+", setting.plugin.page_at(page))) - set(setting.node.slices())
    # At SIGTERM it waits for its watches, which may take minutes.
    setting.cluster.stop("kube-apiserver", signal.SIGKILL)
    try:
        sockets = setting.plugin.sockets()
        setting.cluster.restart("kubelet")
        until("the plugin's new sockets", lambda: len(now := setting.plugin.sockets()) == 2 and not set(now) & set(sockets))
        time.sleep(20)
        expect(gone in setting.plugin.page_at(page), "the slice that the pod holds has left the list")
    finally:
        setting.cluster.start("kube-apiserver")
        setting.cluster.wait_until_api_answers()
    with_held(setting)
    expect_equal("the pod's container", before, setting.pods.container("holder"))
    release(setting)


def hold(setting):
    """A pod on one of two halves; returns that slice."""
    setting.begin([mig("3g.40gb", "3g.40gb")], {"nvidia.com/mig-3g.40gb": 2})
    setting.pods.run("holder", resource="nvidia.com/mig-3g.40gb")
    return setting.node.slices()[setting.pods.device("holder")]


def with_held(setting):
    """What is held is listed beside the new slices, and its neighbour, which no pod held, has left."""
    setting.wait_for_allocatable({"nvidia.com/mig-2g.20gb": 3})
    until_equal("capacity of twos and threes", (3, 1), lambda: capacity(setting))
    expect_equal("the pod's phase", "Running", setting.pods.get("holder")["status"]["phase"])


def release(setting):
    """Once the pod has gone, so has the slice."""
    setting.pods.delete("holder")
    until_equal("capacity of twos and threes", (3, 0), lambda: capacity(setting))


def capacity(setting):
    """Of twos and threes only: for five minutes the kubelet remembers what an earlier plugin had."""
    seen = setting.devices("capacity")
    return seen.get("nvidia.com/mig-2g.20gb", 0), seen.get("nvidia.com/mig-3g.40gb", 0)


def late_driver(setting):
    """The plugin starts before the driver does."""
    setting.begin_with_sevens()
    setting.pods.delete_all()
    setting.node.lay_out(SEVENS, driver="notLoaded")
    old = setting.plugin.pod()["metadata"]["name"]
    setting.cluster.kubectl("delete", "pod", "--namespace", NAMESPACE, old, "--wait")
    until("the plugin's process", lambda: setting.cluster.pids_of(PROGRAM))
    setting.wait_for_allocatable({})
    setting.node.lay_out(SEVENS)
    setting.wait_for_allocatable({SMALL: 56})
    setting.pods.run("late", resource=SMALL)
    expect_equal("the plugin's restarts", 0, setting.plugin.pod()["status"]["containerStatuses"][0]["restartCount"])


def churn(setting):
    """Pods come and go while one GPU after another gets another layout. What the kubelet cannot bear is a device that
    leaves the list right after it was given away."""
    setting.begin_with_sevens()
    kubelet, plugin = setting.cluster.pid("kubelet"), setting.cluster.pids_of(PROGRAM)
    made, refused = [], {}
    for turn in range(24):
        names = [f"turn-{turn}-{number}" for number in range(6)]
        setting.pods.make(*names, resource=SMALL)
        made += names
        layouts = list(SEVENS)
        layouts[turn % 8] = mig("3g.40gb", "2g.20gb")
        setting.node.lay_out(layouts)
        setting.plugin.look()
        for pod in setting.pods.list():
            if pod["status"].get("reason") == "UnexpectedAdmissionError":
                refused[pod["metadata"]["name"]] = pod["status"]["message"]
        if turn >= 3:
            setting.pods.delete(*made[6 * (turn - 3):6 * (turn - 2)], wait=False)
    setting.node.lay_out(SEVENS)
    setting.plugin.look()
    setting.pods.delete_all()
    setting.wait_for_allocatable({SMALL: 56})
    expect_equal("the kubelet's process", kubelet, setting.cluster.pid("kubelet"))
    expect_equal("the plugin's process", plugin, setting.cluster.pids_of(PROGRAM))
    setting.pods.run("after", resource=SMALL)
    others = [words for words in refused.values() if "has gone" not in words and "is unhealthy" not in words]
    expect(not others, f"pods were refused for another reason than a slice that went: {others}")
    return f"{len(made)} pods, {len(refused)} of them refused because their slice had just gone"


CASES = {
    "pods come and go while layouts change": churn,
    "a layout changes on another GPU than the pod's": another_gpu,
    "a slice goes that a pod holds": under_a_pod,
    "a slice goes that a pod holds, behind the plugin's back": behind_the_plugins_back,
    "a slice goes that an init container holds": under_an_init_container,
    "a slice goes that a pod holds, and the kubelet restarts without an API server": without_the_api_server,
    "the driver comes after the plugin": late_driver,
}
