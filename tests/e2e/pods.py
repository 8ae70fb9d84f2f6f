"""Pods that ask for devices, and what they got."""

import json
import re

import cluster
from wait import Failed, expect_equal, until

LABEL = "mig-e2e=pod"
SCRIPT = """
echo "device $NVIDIA_VISIBLE_DEVICES"
exec sleep 2147483647
"""


class Pods:
    """Makes, watches and deletes pods in the default namespace."""

    def __init__(self, cluster_):
        self.cluster = cluster_

    def make(self, *names, resource, count=1, script=SCRIPT, resources=None, init=False):
        """Makes pods that ask for devices, and for other resources; they may have to wait for them. With `init`, an
        ordinary init container does, and the script is its."""
        with_devices = container("init" if init else "main", script, {resource: str(count)} | (resources or {}))
        containers = {"containers": [with_devices]}
        if init:
            containers = {"initContainers": [with_devices], "containers": [container("main", SCRIPT, {})]}
        self.cluster.apply(*({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": dict([LABEL.split("=")])},
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 1,
            } | containers,
        } for name in names))

    def run(self, *names, seconds=120, **rest):
        """Makes pods and waits until all are ready."""
        self.make(*names, **rest)
        self.wait_until_ready(*names, seconds=seconds)

    def wait_until_ready(self, *names, seconds=120):
        def ready():
            states = {pod["metadata"]["name"]: pod for pod in self.list()}
            for name in names:
                status = states[name]["status"]
                if status["phase"] == "Failed":
                    raise Failed(f"pod {name} failed: {status.get('reason')}: {status.get('message')}")
            return all(is_ready(states[name]) for name in names)
        until(f"{len(names)} pods to be ready ({', '.join(names[:3])} …)", ready, seconds)

    def list(self):
        return self.cluster.get("pods", "--selector", LABEL)["items"]

    def get(self, name):
        return self.cluster.get("pod", name)

    def delete(self, *names, wait=True):
        self.cluster.kubectl("delete", "pod", *names, f"--wait={str(wait).lower()}", seconds=180)

    def delete_all(self):
        self.cluster.kubectl("delete", "pods", "--selector", LABEL, "--wait", seconds=300)

    def execute(self, name, script):
        """What `kubectl exec` prints. A kubelet that has just started, or whose runtime has, refuses for a while."""
        def printed():
            nonlocal refusal
            try:
                return self.cluster.kubectl("exec", name, "--", "sh", "-c", f"{script}\necho done")
            except Failed as error:
                refusal = error
                return None
        refusal = None
        try:
            return until(f"kubectl exec in pod {name}", printed, 60).removesuffix("done\n")
        except Failed as error:
            raise refusal or error from error

    def device(self, name):
        """What the pod's variable says, by `kubectl exec`."""
        return self.execute(name, "echo $NVIDIA_VISIBLE_DEVICES").strip()

    def devices(self):
        """What the variable of every pod says, from their logs: pod to device."""
        text = self.cluster.kubectl("logs", "--selector", LABEL, "--prefix", "--tail=-1", "--max-log-requests=100")
        return dict(re.findall(r"^\[pod/([^/]+)/main\] device (\S+)$", text, re.M))

    def container(self, name):
        """What must not change while a pod goes on: its container, and how often that was started."""
        status = self.get(name)["status"]["containerStatuses"][0]
        return status.get("containerID"), status["restartCount"]

    def wait_for_event(self, name, words):
        """Waits for an event about the pod that has these words in it."""
        def found():
            events = self.cluster.get("events", "--field-selector", f"involvedObject.name={name}")["items"]
            return [event for event in events if words in event.get("message", "")]
        return until(f"an event of pod {name} with {words!r}", found)

    def nodes(self, name):
        """The device nodes of NVIDIA in the pod, as names below /dev."""
        found = self.execute(name, "find /dev -type c -path '/dev/nvidia*'")
        return {path.removeprefix("/dev/") for path in found.split()}

    def may_open(self, name, nodes):
        """Which of these nodes (name to major and minor number) the pod's control group lets it open, when it makes
        them for itself: those that are not refused, whether or not a driver answers."""
        tries = "".join(f"try {node} {major} {minor}\n" for node, (major, minor) in nodes.items())
        output = self.execute(name, f"""
try() {{
    mknod /dev/probe c $2 $3 || exit 1
    echo "$1 $( (: </dev/probe) 2>&1)"
    rm /dev/probe
}}
{tries}""")
        answers = dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
        expect_equal("the nodes that were tried", set(nodes), set(answers))
        return {node for node, answer in answers.items() if "not permitted" not in answer}

    def assigned(self):
        """Which device the kubelet has written down for which pod: from its checkpoint, by the pods' names."""
        names = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in self.list()}
        checkpoint = json.loads((self.cluster.plugins / "kubelet_internal_checkpoint").read_text())
        found = {}
        for entry in checkpoint["Data"]["PodDeviceEntries"] or []:
            ids = entry["DeviceIDs"]
            if entry["PodUID"] in names:
                found[names[entry["PodUID"]]] = sorted(id_ for group in ids.values() for id_ in group)
        return found


def container(name, script, limits):
    return {
        "name": name, "image": cluster.IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "resources": {"limits": limits},
    }


def is_ready(pod):
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
