"""Questions that change nothing."""

import json
import os
import platform
import time
from ctypes import byref, c_uint, c_ulonglong, c_void_p

import place
from nvml import MIG_CONFIG_CHANGE, RECOVERY_ACTION, XID, Attributes, Memory, Pci, Refused
from question import Answer, NotAsked, question


def usable(library):
    """Handles of the GPUs that answer."""
    gpus = {index: gpu for index, gpu in library.gpus().items() if answers(library, gpu)}
    if not gpus:
        raise NotAsked("no GPU answers")
    return gpus


def answers(library, gpu):
    """Whether a handle is one, and of a GPU that is not lost."""
    return not isinstance(gpu, str) and code_of(lambda: library.text("nvmlDeviceGetUUID", gpu)) == "SUCCESS"


def readable(library, gpu):
    """MIG devices of a GPU that tell their UUID and IDs."""
    found = []
    for device in library.mig_devices(gpu)[0].values():
        try:
            found.append((device, library.slice(device)))
        except Refused:
            continue
    return found


def state(library, gpu):
    return {None: "without MIG", False: "MIG off", True: "MIG on"}[library.mig_mode(gpu)]


def code_of(work):
    try:
        work()
    except Refused as refused:
        return refused.code
    return "SUCCESS"


@question("machine", "Which machine is this about?", "driver, kernel, GPUs, and the numbers that they have")
def machine(ask):
    with ask.library() as library:
        seen = {"kernel": platform.release(), "driver": library.text("nvmlSystemGetDriverVersion"), "gpus": []}
        for index, gpu in library.gpus().items():
            if not answers(library, gpu):
                seen["gpus"].append({"index": index, "does not answer": gpu if isinstance(gpu, str) else True})
                continue
            found = {"index": index, "name": library.text("nvmlDeviceGetName", gpu), "mig": state(library, gpu)}
            found["uuid"] = library.text("nvmlDeviceGetUUID", gpu)
            for key, call in [("minor", "nvmlDeviceGetMinorNumber"), ("persistence", "nvmlDeviceGetPersistenceMode"),
                              ("virtualization", "nvmlDeviceGetVirtualizationMode")]:
                value = c_uint()
                code = library.code(call, gpu, byref(value))
                found[key] = value.value if code == "SUCCESS" else code
            pci = Pci()
            found["pci"] = library.code("nvmlDeviceGetPciInfo_v3", gpu, byref(pci))
            if found["pci"] == "SUCCESS":
                found["pci"] = pci.address.decode()
                found["numa"] = ask.place.numa_node(found["pci"])
            seen["gpus"].append(found)
    names = sorted({gpu.get("name", "not answering") for gpu in seen["gpus"]})
    text = f"driver {seen['driver']}, Linux {seen['kernel']}, {len(seen['gpus'])} GPUs: {', '.join(names)}"
    return Answer(text, seen=seen)


@question("rights", "What does the driver let this process see?",
          "each call once on a GPU with slices and on one without; run this in containers with other rights, too")
def rights(ask):
    held = ask.place.rights()
    facts, seen = {}, {"rights": held, "calls": {}}
    with ask.library() as library:
        for gpu in usable(library).values():
            devices = readable(library, gpu)
            what = "with slices" if devices else "without slices"
            if what in seen["calls"]:
                continue
            calls = {"nvmlDeviceGetMemoryInfo (GPU)": code_of(
                lambda: library.get("nvmlDeviceGetMemoryInfo", Memory, gpu))}
            for device, info in devices[:1]:
                calls["nvmlDeviceGetUUID (slice)"] = code_of(lambda: library.text("nvmlDeviceGetUUID", device))
                calls["nvmlDeviceGetAttributes_v2 (slice)"] = code_of(
                    lambda: library.get("nvmlDeviceGetAttributes_v2", Attributes, device))
                calls["nvmlDeviceGetMemoryInfo (slice)"] = code_of(
                    lambda: library.get("nvmlDeviceGetMemoryInfo", Memory, device))
                calls["nvmlDeviceGetGpuInstanceById"] = code_of(
                    lambda: library.handle("nvmlDeviceGetGpuInstanceById", gpu, c_uint(info["gi"])))
            seen["calls"][what] = calls
    held = ", ".join(held) or "none"
    for what, calls in seen["calls"].items():
        facts.update({f"rights: {held}; {what}: {call}": code for call, code in calls.items()})
    refused = [f"{call} {what}: {code}" for what, calls in seen["calls"].items()
               for call, code in calls.items() if code != "SUCCESS"]
    return Answer(f"rights: {held}; refused: {', '.join(refused) or 'nothing'}", facts, seen)


@question("open-nodes", "Which device nodes does NVML open, and does a new session leave a GPU's node closed that it "
          "does not ask for?", "/proc/self/fd after nvmlInit, one handle by index, one by UUID; then a second session")
def open_nodes(ask):
    seen = {}
    with ask.library() as library:
        seen["nvmlInit"] = place.open_nodes()
        count = library.get("nvmlDeviceGetCount_v2", c_uint)
        if code_of(lambda: library.handle("nvmlDeviceGetHandleByIndex_v2", c_uint(0))) != "SUCCESS":
            raise NotAsked("the first GPU does not answer")
        seen["one handle by index"] = place.open_nodes()
        gpus = usable(library)
        seen["all handles by index"] = place.open_nodes()
        uuids = {index: library.text("nvmlDeviceGetUUID", gpu) for index, gpu in gpus.items()}
    seen["nvmlShutdown"] = place.open_nodes()
    with ask.library() as library:
        seen["second nvmlInit"] = place.open_nodes()
        library.code("nvmlDeviceGetHandleByUUID", uuids[max(uuids)].encode(), byref(c_void_p()))
        seen["one handle by UUID"] = place.open_nodes()
    if not any(seen.values()):
        return Answer("no device node is open at any time", seen=seen)
    gpu_nodes = {step: [node for node in nodes if node[len("/dev/nvidia"):].isdigit()] for step, nodes in seen.items()}
    closed = not gpu_nodes["second nvmlInit"]
    text = (f"a second session without handles has {len(gpu_nodes['second nvmlInit'])} of {count} GPU nodes open, one "
            f"handle by index opened {len(gpu_nodes['one handle by index'])}, one by UUID "
            f"{len(gpu_nodes['one handle by UUID'])}")
    return Answer(text, {"GPU nodes stay closed in a session that asks for no GPU": closed}, seen)


@question("lost-gpu", "What does a lost GPU answer, and is its node closed in a session that does not ask for it?",
          "only where a GPU is lost: each call once, and a session that asks for the others alone")
def lost_gpu(ask):
    with ask.library() as library:
        codes = {index: gpu for index, gpu in library.gpus().items() if isinstance(gpu, str)}
        handles = {index: gpu for index, gpu in library.gpus().items() if not isinstance(gpu, str)}
        for index, gpu in handles.items():
            code = code_of(lambda: library.text("nvmlDeviceGetUUID", gpu))
            if code in ("GPU_IS_LOST", "RESET_REQUIRED", "UNKNOWN"):
                codes[index] = code
        if not codes:
            raise NotAsked("no GPU is lost")
        seen = {"codes": codes, "open while asked": place.open_nodes()}
        others = [index for index in handles if index not in codes]
        uuid = {index: library.text("nvmlDeviceGetUUID", handles[index]) for index in others}
        seen["another GPU by UUID"] = {
            index: library.code("nvmlDeviceGetHandleByUUID", text.encode(), byref(c_void_p()))
            for index, text in list(uuid.items())[:1]}
    with ask.library() as library:
        for index in others:
            library.code("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(c_void_p()))
        seen["open in a new session"] = place.open_nodes()
    text = f"{codes}; a new session that asked for the others has {len(seen['open in a new session'])} nodes open"
    facts = {"a lost GPU makes a look-up of another by UUID answer": code
             for code in seen["another GPU by UUID"].values()}
    return Answer(text, facts, seen)


@question("monitor-node", "Does NVML open the node of mig/monitor by itself, and when?",
          "/proc/self/fd after nvmlInit, handles, a set of events, registrations, and the memory of each GPU")
def monitor_node(ask):
    minor = ask.place.minors().get("monitor")
    if minor is None:
        raise NotAsked("mig-minors does not know mig/monitor: no MIG, or the driver's files are not here")
    name, seen = f"nvidia-cap{minor}", {}

    def step(what):
        seen[what] = any(node.endswith(f"/{name}") for node in place.open_nodes())

    with ask.library() as library:
        step("nvmlInit_v2")
        gpus = usable(library).values()
        step("handles")
        events, _ = library.events(XID, gpus)
        step("events")
        for gpu in gpus:
            code_of(lambda: library.get("nvmlDeviceGetMemoryInfo", Memory, gpu))
        step("memory")
        library.code("nvmlEventSetFree", events)
    first = next((what for what, is_open in seen.items() if is_open), None)
    return Answer(f"opened by {first}" if first else "not opened", {"NVML opens mig/monitor": first is not None},
                  {"node": name, "can be opened": place.can_open(ask.place.node(minor)), "steps": seen})


@question("event-masks", "Which events can be registered, and may one mask have MigConfigChange in it?",
          "nvmlDeviceGetSupportedEventTypes and nvmlDeviceRegisterEvents with several masks, GPUs with MIG on and off")
def event_masks(ask):
    facts, seen = {}, {}
    with ask.library() as library:
        for index, gpu in usable(library).items():
            what, mask = state(library, gpu), None
            try:
                mask = library.get("nvmlDeviceGetSupportedEventTypes", c_ulonglong, gpu)
            except Refused as refused:
                mask = refused.code
            codes = {}
            for name, kinds in [("Xid", XID), ("MigConfigChange", MIG_CONFIG_CHANGE),
                                ("Xid and MigConfigChange", XID | MIG_CONFIG_CHANGE)]:
                events, registered = library.events(kinds, [gpu])
                codes[name] = registered[0]
                library.code("nvmlEventSetFree", events)
            seen[index] = {"state": what, "supported": hex(mask) if isinstance(mask, int) else mask, **codes}
            if isinstance(mask, int) and what != "without MIG":
                facts[f"{what}: MigConfigChange is among the supported types"] = bool(mask & MIG_CONFIG_CHANGE)
                facts.update({f"{what}: registering {name}": code for name, code in codes.items()})
    text = "; ".join(f"GPU {index}, {found['state']}: {found['supported']}, both at once "
                     f"{found['Xid and MigConfigChange']}" for index, found in seen.items())
    return Answer(text, facts, seen)


@question("identity", "Which UUIDs do slices have?",
          "all slices with their IDs; two reports, from before and after a reboot or another driver, can be compared")
def identity(ask):
    seen = {}
    with ask.library() as library:
        for gpu in usable(library).values():
            seen[library.text("nvmlDeviceGetUUID", gpu)] = [info for _, info in readable(library, gpu)]
    count = sum(map(len, seen.values()))
    if not count:
        raise NotAsked("no GPU has a slice")
    return Answer(f"{count} slices", seen=seen)


@question("placements", "Which GPU instance IDs lie where, and does that differ between GPUs?",
          "nvmlDeviceGetGpuInstances of every profile on every GPU in MIG mode")
def placements(ask):
    seen = {}
    with ask.library() as library:
        for index, gpu in usable(library).items():
            if not library.mig_mode(gpu):
                continue
            try:
                infos = [info for _, info in library.instances(gpu)]
            except Refused as refused:
                raise NotAsked(f"{refused}: this process may not list GPU instances") from None
            seen[index] = sorted([info.start, info.size, info.id] for info in infos)
    if not any(seen.values()):
        raise NotAsked("no GPU has a GPU instance")
    ids = {}
    for found in seen.values():
        for start, size, id in found:
            ids.setdefault((start, size), set()).add(id)
    many = sum(len(found) > 1 for found in ids.values())
    text = f"{many} of {len(ids)} placements have other IDs on other GPUs" if len(seen) > 1 else f"one GPU: {seen}"
    facts = {"a larger GPU instance has an ID of an earlier range (0, 1 to 2, 3 to 6, 7 to 14)":
             all(in_its_range(found) for found in seen.values())}
    return Answer(text, facts, seen)


def in_its_range(found):
    """Whether of two instances the one that is not smaller has an ID of a range that is not later."""
    rank = lambda id: (id + 1).bit_length()
    return all(rank(a[2]) <= rank(b[2]) for a in found for b in found if a[1] > b[1])


@question("proc-times", "Do capability files keep inode and time from look to look?",
          "stat of each slice's access file, three times, once with a descriptor of O_PATH held")
def proc_times(ask):
    files = [ask.place.capability(minor, found["gi"], found["ci"]) for minor, found in slices_of(ask)]
    seen = {}
    for file in files:
        if not file.exists():
            seen[str(file)] = "not there"
            continue
        first = place.stamp(file)
        time.sleep(0.05)
        second = place.stamp(file)
        held = os.open(file, os.O_PATH)
        third = place.stamp(file)
        os.close(held)
        seen[str(file)] = "the same" if first == second == third else f"{first}, {second}, held: {third}"
    moved = sum(text not in ("the same", "not there") for text in seen.values())
    missing = sum(text == "not there" for text in seen.values())
    facts = {"times of access files stay": not moved, "each slice has its access file": not missing}
    return Answer(f"{len(seen)} files: {moved} with another time or inode, {missing} missing", facts, seen)


def slices_of(ask):
    """Minor of the GPU, and IDs, of each slice."""
    found = []
    with ask.library() as library:
        for gpu in usable(library).values():
            minor = library.get("nvmlDeviceGetMinorNumber", c_uint, gpu)
            found.extend((minor, info) for _, info in readable(library, gpu))
    if not found:
        raise NotAsked("no GPU has a slice")
    return found


@question("cap-nodes", "Do slices have their nodes here, and are there nodes without a slice?",
          "mig-minors against the folder nvidia-caps and the list of slices")
def cap_nodes(ask):
    minors = ask.place.minors()
    if not minors:
        raise NotAsked("there is no mig-minors: no MIG, or the driver's files are not here")
    wanted = set()
    for minor, found in slices_of(ask):
        for name in (f"gpu{minor}/gi{found['gi']}/access", f"gpu{minor}/gi{found['gi']}/ci{found['ci']}/access"):
            wanted.add(minors.get(name, name))
    folder = ask.place.below("dev/nvidia-caps")
    there = {int(name[len("nvidia-cap"):]) for name in os.listdir(folder)} if folder.is_dir() else set()
    instances = {minor for name, minor in minors.items() if name.startswith("gpu")}
    seen = {"missing": sorted(map(str, wanted - there)), "without a slice": len((there & instances) - wanted)}
    text = f"{len(wanted - there)} of {len(wanted)} nodes are missing, {seen['without a slice']} belong to no slice"
    formula = all(minors.get(f"gpu{gpu}/gi{gi}/access") == 3 + 135 * gpu + 9 * gi
                  for gpu in range(32) for gi in range(15) if f"gpu{gpu}/gi{gi}/access" in minors)
    return Answer(text, {"minors are 3 + 135 x GPU + 9 x GPU instance": formula}, seen)


@question("recovery", "Does the driver say what a GPU needs?", "field 230 of each GPU")
def recovery(ask):
    with ask.library() as library:
        gpus = usable(library)
        seen = {index: library.field(gpu, RECOVERY_ACTION) for index, gpu in gpus.items()}
        able = [index for index, gpu in gpus.items() if library.mig_mode(gpu) is not None]
    known = all(isinstance(seen[index], int) for index in able)
    return Answer(f"{seen}", {"GPUs that know MIG answer field 230": known} if able else {}, seen)


@question("codes", "With which codes does the driver refuse what is not there?",
          "an index and a MIG index past the end, an unknown UUID, MIG calls where MIG is off or missing")
def codes(ask):
    facts = {}
    with ask.library() as library:
        count = library.get("nvmlDeviceGetCount_v2", c_uint)
        facts["GPU index past the end"] = library.code(
            "nvmlDeviceGetHandleByIndex_v2", c_uint(count), byref(c_void_p()))
        gpus = usable(library)
        if len(gpus) == count:
            # While a GPU is lost this says nothing of UUIDs.
            facts["unknown UUID"] = library.code(
                "nvmlDeviceGetHandleByUUID", b"GPU-00000000-0000-0000-0000-000000000000", byref(c_void_p()))
        for gpu in gpus.values():
            what = state(library, gpu)
            _, holes = library.mig_devices(gpu)
            if holes:
                facts[f"{what}: MIG index without a device"] = "/".join(sorted(holes))
            facts[f"{what}: MIG index past the end"] = library.code(
                "nvmlDeviceGetMigDeviceHandleByIndex", gpu, c_uint(1000), byref(c_void_p()))
            unknown = library.code("nvmlDeviceGetGpuInstanceById", gpu, c_uint(99), byref(c_void_p()))
            if unknown != "NO_PERMISSION":
                facts[f"{what}: GPU instance that does not exist"] = unknown
            facts[f"{what}: attributes of a whole GPU"] = code_of(
                lambda: library.get("nvmlDeviceGetAttributes_v2", Attributes, gpu))
    return Answer("; ".join(f"{what}: {code}" for what, code in facts.items()), facts)


@question("costs", "What do opening NVML and a look cost?",
          "times of nvmlInit, the first handle, two looks at everything; resident memory; size of the library")
def costs(ask):
    before, times = place.resident_kib(), {}
    library = ask.library()
    loaded, began = place.resident_kib(), time.monotonic()

    def step(what):
        nonlocal began
        times[what] = round((time.monotonic() - began) * 1000, 3)
        began = time.monotonic()

    with library:
        step("nvmlInit, ms")
        library.code("nvmlDeviceGetHandleByIndex_v2", c_uint(0), byref(c_void_p()))
        step("first handle, ms")
        for look in ("first look, ms", "second look, ms"):
            slices = 0
            for gpu in usable(library).values():
                library.text("nvmlDeviceGetUUID", gpu)
                for device, _ in readable(library, gpu):
                    code_of(lambda: library.get("nvmlDeviceGetAttributes_v2", Attributes, device))
                    slices += 1
            step(look)
        after = place.resident_kib()
    seen = {**times, "slices": slices, "resident before, KiB": before, "with the library, KiB": loaded,
            "after two looks, KiB": after}
    if os.path.exists(library.path):
        seen["library, bytes"] = os.path.getsize(library.path)
    return Answer(", ".join(f"{what} {value}" for what, value in seen.items()), seen=seen)


@question("links", "How are the GPUs connected, and are NVLinks up in MIG mode?",
          "nvmlDeviceGetTopologyCommonAncestor of each pair, nvmlDeviceGetNvLinkState of each link")
def links(ask):
    facts, seen = {}, {"pairs": {}, "nvlinks": {}}
    with ask.library() as library:
        gpus = usable(library)
        for a, b in ((a, b) for a in gpus for b in gpus if a < b):
            level = c_uint()
            code = library.code("nvmlDeviceGetTopologyCommonAncestor", gpus[a], gpus[b], byref(level))
            seen["pairs"][f"{a}-{b}"] = level.value if code == "SUCCESS" else code
        for index, gpu in gpus.items():
            states = []
            for link in range(64):
                active = c_uint()
                code = library.code("nvmlDeviceGetNvLinkState", gpu, c_uint(link), byref(active))
                if code != "SUCCESS":
                    facts["NVLink past the last" if states else "NVLink of a GPU that has none"] = code
                    break
                states.append(active.value)
            seen["nvlinks"][index] = {"state": state(library, gpu), "links": len(states), "up": sum(states)}
            if states and library.mig_mode(gpu):
                facts["NVLinks are up in MIG mode"] = any(states)
    levels = sorted(set(map(str, seen["pairs"].values())))
    return Answer(f"levels between pairs: {', '.join(levels) or 'one GPU'}; NVLinks: {seen['nvlinks']}", facts, seen)


@question("plugin", "What does the plugin itself see?", "`devices -o json` of the binary that --plugin names")
def plugin(ask):
    if not ask.plugin:
        raise NotAsked("no binary was named with --plugin")
    command = [ask.plugin, "--driver-root-ctr-path", str(ask.place.root), "devices", "-o", "json"]
    code, text, error = ask.command(command)
    if code != 0:
        return Answer(f"exit code {code}: {error.strip()[-500:]}", {"the plugin can read the node": False})

    inventory = json.loads(text)
    theirs = {device["uuid"] for gpu in inventory["gpus"] for device in gpu["migDevices"]}
    with ask.library() as library:
        ours = {info["uuid"] for gpu in usable(library).values() for _, info in readable(library, gpu)}
    seen = {"gpus": len(inventory["gpus"]), "slices": len(theirs), "problems": inventory["problems"],
            "only the plugin": sorted(theirs - ours), "only this program": sorted(ours - theirs)}
    facts = {"the plugin can read the node": True, "the plugin sees the same slices": ours == theirs}
    return Answer(f"{seen['gpus']} GPUs, {len(theirs)} slices, {len(seen['problems'])} problems", facts, seen)
