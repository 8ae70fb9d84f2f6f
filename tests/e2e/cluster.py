"""A Kubernetes cluster of one node, in namespaces of its own: no package is installed, no port is opened, no setting
of the machine is changed."""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "deploy/image"))
import oci
from wait import Failed, until

NODE = "127.0.0.1"
API = "https://127.0.0.1:6443"
ETCD = "http://127.0.0.1:2379"
CONTAINERD = "/run/containerd/containerd.sock"
IMAGE = "localhost/busybox:1"
CGROUPS = Path("/sys/fs/cgroup")
CAP_SYS_RESOURCE = 24


class Cluster:
    """The node, its processes, and `kubectl`. What it writes lies below `work`; commands come from `given` where that
    folder has them."""

    def __init__(self, work, given, policy):
        self.work = Path(work).resolve()
        self.given = Path(given).resolve() if given else None
        # The kubelet's topology manager policy, or None.
        self.policy = policy
        self.state = self.work / "state"
        self.log = self.work / "log"
        self.group = f"mig-e2e-{zlib.crc32(str(self.work).encode()):08x}"
        self.kubelet_folder = self.state / "kubelet"
        self.plugins = self.kubelet_folder / "device-plugins"
        self.processes = {}

    # Commands

    def command(self, name):
        """The path of a command: given, built, or from a package."""
        folders = [self.given] if self.given else []
        folders += [self.work / folder for folder in ("bin", "packages/usr/bin", "packages/usr/sbin", "packages/bin")]
        for folder in folders:
            if os.access(folder / name, os.X_OK):
                return str(folder / name)
        raise Failed(f"{name} is in none of {', '.join(map(str, folders))}: tests/e2e/build makes them")

    def version(self):
        """The kubelet's version, as (1, 20, 2)."""
        text = subprocess.run([self.command("kubelet"), "--version"], capture_output=True, text=True, check=True).stdout
        return tuple(map(int, re.search(r"v(\d+)\.(\d+)\.(\d+)", text).groups()))

    def runtime(self):
        """containerd's version, as (1, 6)."""
        text = subprocess.run([self.command("containerd"), "--version"], capture_output=True, text=True, check=True).stdout
        return tuple(map(int, re.search(r" v?(\d+)\.(\d+)\.", text).groups()))

    def find_kept(self):
        """Takes the commands that a cluster which was kept was started with, so that E2E_BIN need not be named again."""
        try:
            given = (self.state / "given").read_text()
        except FileNotFoundError:
            raise Failed("no cluster was kept") from None
        self.given = Path(given) if given else None

    def inside(self, *command):
        """A command line that runs `command` inside the node."""
        path = ":".join(dict.fromkeys(os.path.dirname(self.command(name))
                                      for name in ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "kubectl")))
        return ["nsenter", "--target", str(self._init()), "--mount", "--net", "--pid", "--uts", "--ipc", "--",
                "env", f"PATH={path}:{os.environ['PATH']}:/usr/sbin:/sbin", f"CONTAINERD_ADDRESS={CONTAINERD}",
                f"KUBECONFIG={self.state}/kubeconfig", *map(str, command)]

    def run(self, *command, text=None, seconds=120):
        """Runs a command inside the node, and returns what it printed."""
        result = subprocess.run(self.inside(*command), input=text, capture_output=True, text=True, timeout=seconds)
        if result.returncode != 0:
            words = " ".join(map(str, command))
            raise Failed(f"{words} ended with {result.returncode}: {result.stderr.strip()} {result.stdout.strip()}")
        return result.stdout

    def kubectl(self, *arguments, text=None, seconds=120):
        cache = self.state / "kubectl-cache"
        return self.run(self.command("kubectl"), f"--cache-dir={cache}", *arguments, text=text, seconds=seconds)

    def get(self, *arguments):
        return json.loads(self.kubectl("get", "-o", "json", *arguments))

    def apply(self, *objects):
        """Makes or changes objects. Not validated by kubectl: an older API server drops fields that it does not know."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--validate=false", "-f", "-", text=json.dumps(listed))

    # Up and down

    def up(self):
        """Starts everything, with nothing left of an earlier cluster."""
        self.down()
        for folder in ("kubelet", "containerd", "pods-log", "static-pods", "cni", "opt"):
            (self.state / folder).mkdir(parents=True)
        (self.state / "given").write_text(str(self.given or ""))
        shutil.rmtree(self.log, ignore_errors=True)
        self.log.mkdir(parents=True)
        self._write_configuration()
        self.boot()
        self._wait_for_api(["get", "serviceaccount", "default"], "the first service account")
        self.kubectl("label", "node", NODE, "nvidia.com/gpu.present=true")

    def boot(self):
        """Starts the node and its processes, in the order in which they need each other."""
        self._make_groups()
        init = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child",
             HERE / "node-init", self.state, self.group],
            stdin=subprocess.DEVNULL, stdout=open(self.log / "node-init.log", "ab"), stderr=subprocess.STDOUT,
            start_new_session=True)
        until("the node's first process", lambda: (self.state / "ready").exists() or init.poll() is not None, 30)
        if init.poll() is not None:
            raise Failed(f"the node did not start; see {self.log}/node-init.log")
        (self.state / "init.pid").write_text(children(init.pid)[0])
        self.start("containerd")
        self.start("etcd")
        self.start("kube-apiserver")
        self.wait_until_api_answers()
        self.start("kube-controller-manager")
        self.start("kube-scheduler")
        self.start("kubelet")
        self._wait_for_api(["wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s"], "the node to be ready")

    def power_off(self):
        """Ends every process of the node at once, as a power cut does."""
        try:
            pid = self._init()
        except Failed:
            pid = None
        if pid:
            os.kill(pid, signal.SIGKILL)
            until("the node's end", lambda: not Path(f"/proc/{pid}").exists(), 60)
        for name in ("ready", "init.pid"):
            (self.state / name).unlink(missing_ok=True)
        for process in self.processes.values():
            process.wait()
        self.processes = {}
        until("the control groups' end", self._remove_groups, 60)

    def down(self):
        """Ends the node, also one that an earlier run left, and removes what it wrote, but not its logs."""
        if not self.state.exists():
            return
        self.power_off()
        if f" {self.state}/" in Path("/proc/self/mounts").read_text():
            raise Failed(f"something is mounted below {self.state}")
        shutil.rmtree(self.state)

    def _init(self):
        """The process ID of the node's first process. It may be from an earlier run, and its ID another's by now."""
        try:
            pid = int((self.state / "init.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            words = []
        if self.group.encode() not in words:
            raise Failed("the node is not running")
        return pid

    def wait_until_api_answers(self):
        self._wait_for_api(["get", "--raw", "/readyz"], "the API server")

    def _wait_for_api(self, arguments, what):
        def works():
            try:
                return self.kubectl(*arguments) or True
            except Failed:
                return False
        until(what, works, 180)

    # The node's processes

    def start(self, name):
        """Starts one of the node's processes, and waits until it can be used."""
        with open(self.log / f"{name}.log", "ab") as log:
            process = subprocess.Popen(self.inside(self.command(name), *getattr(self, "_" + name.replace("-", "_"))()),
                                       stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.processes[name] = process
        self.pid(name)
        if name == "containerd":
            self._wait_for_containerd()
        if name == "kubelet":
            started = time.time()
            socket = self.plugins / "kubelet.sock"
            until("the kubelet's socket for plugins", lambda: socket.exists() and socket.stat().st_mtime >= started - 1)

    def pid(self, name):
        """The process ID of one of the node's processes, as this machine counts."""
        process = self.processes[name]

        def child():
            if process.poll() is not None:
                raise Failed(f"{name} ended with {process.returncode}; see {self.log}/{name}.log")
            return children(process.pid)
        # nsenter's only child; for a moment that is not yet the command, but will be under the same ID.
        return int(until(f"{name} to start", child, 30)[0])

    def stop(self, name, how=signal.SIGTERM):
        process = self.processes.pop(name)
        os.kill(int(children(process.pid)[0]), how)
        process.wait(60)

    def restart(self, name, how=signal.SIGTERM):
        self.stop(name, how)
        self.start(name)

    def pids_of(self, program):
        """The processes of this program in the node, as this machine counts."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                file = os.readlink(process / "exe")
                group = (process / "cgroup").read_text()
            except OSError:
                continue
            if words[0].decode() == program and file.endswith(program) and f"/{self.group}/" in group:
                found.append(int(process.name))
        return found

    def _wait_for_containerd(self):
        def answers():
            try:
                return self.run("ctr", "version")
            except Failed:
                return None
        until("containerd", answers, 60)
        if IMAGE not in self.run("ctr", "--namespace=k8s.io", "images", "list", "--quiet"):
            self.load_image(self._busybox())

    def load_image(self, archive):
        self.run("ctr", "--namespace=k8s.io", "images", "import", archive)

    def _busybox(self):
        """The image of the test's pods, and of the process that holds a pod's namespaces."""
        busybox = self.command("busybox")
        layer = oci.Layer()
        layer.copy("/bin/busybox", busybox)
        for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if applet != "busybox":
                layer.link(f"/bin/{applet}", "busybox")
        layer.folder("/tmp", 0o1777)
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
        archive = self.state / "busybox.tar"
        oci.write(archive, IMAGE, layer, architecture, {"Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"]})
        return archive

    # Configuration

    def _write_configuration(self):
        state = self.state
        token = secrets.token_hex(16)
        (state / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        (state / "tokens.csv").chmod(0o600)
        # For all of the node: who may do what is not what is tested here.
        write_json(state / "kubeconfig", {
            "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
            "clusters": [{"name": "e2e", "cluster": {"server": API, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "e2e", "user": {"token": token}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        })
        subprocess.run(["openssl", "genrsa", "-out", state / "service-accounts.key", "2048"], check=True, capture_output=True)
        write_json(state / "cni/ptp.conflist", {
            "cniVersion": "0.4.0", "name": "e2e", "plugins": [{"type": "ptp", "ipam": {
                "type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "10.88.0.0/16"}]]}}],
        })
        # Without this capability nothing can be made safer from the kernel's OOM killer than it is.
        capabilities = int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text()).group(1), 16)
        limited = not capabilities >> CAP_SYS_RESOURCE & 1
        (state / "containerd.toml").write_text(f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = {str(limited).lower()}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{self.work}/packages/usr/lib/cni"
    conf_dir = "{state}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""")
        (state / "resolv.conf").touch()
        write_json(state / "kubelet.json", self._kubelet_configuration(0 if limited else -999))

    def _kubelet_configuration(self, oom_score):
        configuration = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE,
            "healthzBindAddress": NODE,
            "readOnlyPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.group}",
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "oomScoreAdj": oom_score,
            "resolvConf": f"{self.state}/resolv.conf",
            "staticPodPath": f"{self.state}/static-pods",
            "volumePluginDir": f"{self.state}/volume-plugins",
            "nodeStatusUpdateFrequency": "1s",
            # How long it takes until a changed config map is in a pod's volume; a minute by default.
            "syncFrequency": "5s",
            # As by default from 1.27 on; before, it is a tenth of that, and what the pods do shows late.
            "kubeAPIQPS": 50,
            "kubeAPIBurst": 100,
            # An image that is deleted could not be had again.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }
        minor = self.version()[1]
        if minor >= 27:
            configuration["containerRuntimeEndpoint"] = f"unix://{CONTAINERD}"
        if minor >= 31:
            configuration["failCgroupV1"] = False
            configuration["featureGates"] = {"ResourceHealthStatus": True}
        if self.policy:
            configuration |= {"cpuManagerPolicy": "static", "topologyManagerPolicy": self.policy,
                              "kubeReserved": {"cpu": "200m"}}
        return configuration

    def _containerd(self):
        return ["--config", self.state / "containerd.toml"]

    def _etcd(self):
        return ["--data-dir", self.state / "etcd", "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD,
                "--listen-peer-urls", "http://127.0.0.1:2380"]

    def _kube_apiserver(self):
        key = self.state / "service-accounts.key"
        gates = ["--feature-gates=ResourceHealthStatus=true"] if self.version()[1] >= 31 else []
        return ["--etcd-servers", ETCD, "--bind-address", NODE, "--advertise-address", NODE,
                "--endpoint-reconciler-type=none", "--cert-dir", self.state / "certificates",
                "--token-auth-file", self.state / "tokens.csv", "--authorization-mode=AlwaysAllow",
                "--service-account-key-file", key, "--service-account-signing-key-file", key,
                "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24",
                "--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true", *gates]

    def _kube_controller_manager(self):
        return [*self._client(), "--service-account-private-key-file", self.state / "service-accounts.key",
                "--flex-volume-plugin-dir", self.state / "volume-plugins"]

    def _kube_scheduler(self):
        return self._client()

    def _client(self):
        # Older ones also listen without TLS unless told not to.
        port = ["--port=0"] if self.version()[1] < 23 else []
        return ["--kubeconfig", self.state / "kubeconfig", "--leader-elect=false", "--bind-address", NODE, *port]

    def _kubelet(self):
        minor = self.version()[1]
        runtime = ["--container-runtime=remote"] if minor < 24 else []
        runtime += [f"--container-runtime-endpoint=unix://{CONTAINERD}"] if minor < 27 else []
        return ["--config", self.state / "kubelet.json", "--kubeconfig", self.state / "kubeconfig",
                f"--hostname-override={NODE}", "--v=2", *runtime]

    # Control groups

    def _make_groups(self):
        if (CGROUPS / "cgroup.controllers").exists():
            (CGROUPS / self.group).mkdir(exist_ok=True)
            for folder in (CGROUPS, CGROUPS / self.group):
                controllers = (folder / "cgroup.controllers").read_text().split()
                (folder / "cgroup.subtree_control").write_text(" ".join("+" + name for name in controllers))
            return
        for hierarchy in CGROUPS.iterdir():
            if hierarchy.is_dir() and not hierarchy.is_symlink():
                (hierarchy / self.group).mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            # A new group has none of either, and no process can be put into it.
            (CGROUPS / "cpuset" / self.group / name).write_text((CGROUPS / "cpuset" / name).read_text())

    def _remove_groups(self):
        """Removes what is empty of the node's groups; answers whether none is left."""
        ours = [CGROUPS / self.group, *CGROUPS.glob(f"*/{self.group}")]
        for group in ours:
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    continue
        return not any(group.exists() for group in ours)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1))
