"""What deploy/helm/check needs beyond helm.

check.py table [--update]        the README's table of values and the schema against values.yaml
check.py objects VERSION FILE…   rendered objects against Kubernetes' schemas, and rules that no schema has
"""

import json
import pathlib
import re
import sys

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).parents[3]
CHART = ROOT / "deploy/helm/mig-device-plugin"
BEGIN, END = "<!-- values: written by deploy/helm/check --update -->", "<!-- end of values -->"

# No version of Kubernetes has a schema for these: they come with the Prometheus Operator.
FOREIGN = {("monitoring.coreos.com/v1", "PodMonitor")}
# Read by NVIDIA's container runtime, or by the plugin but in no table of docs/configuration.md.
OTHER_VARIABLES = {
    "NODE_NAME",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_MIG_MONITOR_DEVICES",
}


def rows(text):
    """Each key of values.yaml that has a comment above it: its path, its default, its comment."""
    path, comment = [], []
    values = yaml.safe_load(text)
    for line in text.splitlines():
        if found := re.match(r"^( *)# (.*)$", line):
            comment.append(found[2])
        elif found := re.match(r"^( *)([A-Za-z]+):", line):
            path = path[: len(found[1]) // 2] + [found[2]]
            if comment:
                value = values
                for key in path:
                    value = value[key]
                yield ".".join(path), value, " ".join(comment)
            comment = []
        elif not line.strip():
            comment = []


def uncovered(values, documented, path=()):
    """Keys that have no comment, nor has what they are in."""
    for key, value in values.items():
        here = (*path, key)
        name = ".".join(here)
        if name in documented:
            continue
        if isinstance(value, dict) and any(known.startswith(name + ".") for known in documented):
            yield from uncovered(value, documented, here)
        else:
            yield name


def table(text):
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, value, meaning in rows(text):
        short = json.dumps(value, separators=(", ", ": "))
        default = f"`{short}`" if len(short) < 60 else "see values.yaml"
        lines.append(f"| `{key}` | {default} | {meaning} |")
    return "\n".join(lines)


def check_table(update):
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    mistakes = [f"values.yaml: no comment above {key}" for key in uncovered(values, {key for key, _, _ in rows(text)})]
    schema = json.loads((CHART / "values.schema.json").read_text())
    for key in sorted(set(schema["properties"]) - set(values) - {"global"}):
        mistakes.append(f"values.schema.json: {key} is not in values.yaml")
    page = CHART / "README.md"
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{table(text)}\n{END}{after}"
    if update:
        page.write_text(wanted)
    elif page.read_text() != wanted:
        mistakes.append("README.md: its table is not that of values.yaml; run deploy/helm/check --update")
    version = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    for key in ("version", "appVersion"):
        if chart[key] != version:
            mistakes.append(f"Chart.yaml: {key} is {chart[key]}, and Cargo.toml has {version}")
    return mistakes


def check_object(thing, version):
    if (thing["apiVersion"], thing["kind"]) in FOREIGN:
        return
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        yield f"{thing['kind']} is none of Kubernetes {version}: {where}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message
    if thing["kind"] == "DaemonSet":
        yield from check_daemonset(thing["spec"], tuple(map(int, version.split("."))))


def check_daemonset(spec, version):
    """What the API server would refuse, or nobody would notice."""
    pod = spec["template"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    if not spec["selector"]["matchLabels"].items() <= labels.items():
        yield "the DaemonSet does not select its own pods"
    (container,) = pod["containers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    if mounts != volumes:
        yield f"volumes {sorted(volumes)} and mounts {sorted(mounts)} are not the same"
    page = (ROOT / "docs/configuration.md").read_text()
    known = set(re.findall(r"`([A-Z][A-Z_]+)`", page)) | OTHER_VARIABLES
    variables = {variable["name"] for variable in container["env"]}
    for name in sorted(variables - known):
        yield f"the plugin has no variable {name}"
    context = container["securityContext"]
    added = (context.get("capabilities") or {}).get("add") or []
    if "NVIDIA_MIG_MONITOR_DEVICES" in variables and "SYS_ADMIN" not in added and not context.get("privileged"):
        yield "NVIDIA's runtime does not start a container with NVIDIA_MIG_MONITOR_DEVICES and without SYS_ADMIN"
    yield from check_host_folders(pod, container, version)


def check_host_folders(pod, container, version):
    """Where the host's folders are, and how they are mounted."""
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    if paths["device-plugins"] != "/var/lib/kubelet/device-plugins":
        yield "the kubelet's folder for device plugins is a constant, whatever its --root-dir is"
    (named,) = [v["value"] for v in container["env"] if v["name"] == "NVIDIA_DRIVER_ROOT"] or ["/"]
    if paths.get("driver-root", "/") != named:
        yield f"answers name the driver root {named}, and {paths['driver-root']} is mounted"
    for mount in container["volumeMounts"]:
        if paths.get(mount["name"]) not in ("/", "/dev"):
            continue
        if not mount.get("readOnly") or "mountPropagation" in mount:
            yield f"{mount['name']} has to be read-only, and without propagation, which keeps it from being so as a whole"
        if (mount.get("recursiveReadOnly") == "IfPossible") != (version >= (1, 31)):
            yield f"{mount['name']}: recursiveReadOnly is there from Kubernetes 1.31 on, and has to be used there"


def main(arguments):
    if arguments[0] == "table":
        mistakes = check_table("--update" in arguments)
    else:
        version, *files = arguments[1:]
        mistakes = []
        for file in files:
            for thing in filter(None, yaml.safe_load_all(pathlib.Path(file).read_text())):
                mistakes += [f"{pathlib.Path(file).name}: {mistake}" for mistake in check_object(thing, version)]
    for mistake in mistakes:
        print(f"FAILED: {mistake}", file=sys.stderr)
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
