"""Questions that need GPU instances made and destroyed, on one GPU in MIG mode that has none and no process; and those
that this program never asks.
"""

import os
import time
from ctypes import byref, c_uint

import place
from nvml import MIG_CONFIG_CHANGE, XID, ComputeInstanceInfo, GpuInstanceInfo, Placement, Process, Refused
from question import Answer, NotAsked, never, question
from reading import code_of, usable

QUIET_MS = 1000


class Slices:
    """Instances on the GPU that was named."""

    def __init__(self, library, uuid):
        self.library = library
        # Not by UUID: that may start other GPUs.
        self.gpu = next(gpu for gpu in usable(library).values() if library.text("nvmlDeviceGetUUID", gpu) == uuid)
        self.minor = library.get("nvmlDeviceGetMinorNumber", c_uint, self.gpu)

    def smallest(self):
        """The profile that fits most often."""
        return max(self.library.profiles(self.gpu), key=lambda profile: (profile.count, -profile.id))

    def instance(self, profile, start=None, size=None):
        """Makes a GPU instance; its handle, and where it lies."""
        if start is None:
            handle = self.library.handle("nvmlDeviceCreateGpuInstance", self.gpu, c_uint(profile.id))
        else:
            handle = self.library.handle("nvmlDeviceCreateGpuInstanceWithPlacement", self.gpu, c_uint(profile.id),
                                         byref(Placement(start, size)))
        return handle, self.library.get("nvmlGpuInstanceGetInfo", GpuInstanceInfo, handle)

    def compute(self, instance):
        """Makes the compute instance that is as large as its GPU instance; its handle and ID."""
        profile = max(self.library.compute_profiles(instance), key=lambda profile: profile.slices)
        handle = self.library.handle("nvmlGpuInstanceCreateComputeInstance", instance, c_uint(profile.id))
        return handle, self.library.get("nvmlComputeInstanceGetInfo_v2", ComputeInstanceInfo, handle).id

    def make(self, profile, start=None, size=None):
        instance, info = self.instance(profile, start, size)
        compute, ci = self.compute(instance)
        return instance, compute, info, ci

    def destroy(self, made):
        """The codes of both calls."""
        instance, compute, *_ = made
        return [self.library.code("nvmlComputeInstanceDestroy", compute),
                self.library.code("nvmlGpuInstanceDestroy", instance)]

    def uuid_of(self, info, ci):
        devices = map(self.library.slice, self.library.mig_devices(self.gpu)[0].values())
        return next((found["uuid"] for found in devices if (found["gi"], found["ci"]) == (info.id, ci)), None)

    def clear(self):
        for instance, _ in self.library.instances(self.gpu):
            for compute in self.library.compute_instances(instance):
                self.library.do("nvmlComputeInstanceDestroy", compute)
            self.library.do("nvmlGpuInstanceDestroy", instance)


def changes(ask):
    return ask.library(may_change=True)


@question("change-events", "How many MigConfigChange events come, and how soon after a change is all of it listed?",
          "a set of events while a slice is made and destroyed", changes=True)
def change_events(ask):
    seen, facts = {}, {}
    with changes(ask) as library:
        slices = Slices(library, ask.gpu)
        events, codes = library.events(MIG_CONFIG_CHANGE, [slices.gpu])
        if codes != ["SUCCESS"]:
            raise NotAsked(f"MigConfigChange cannot be registered: {codes[0]}")
        profile = slices.smallest()
        made = None
        for what in ("a slice is made", "a slice is destroyed"):
            began = time.monotonic()
            if made is None:
                made = slices.make(profile)
                listed = slices.uuid_of(made[2], made[3]) is not None
            else:
                slices.destroy(made)
                listed = slices.uuid_of(made[2], made[3]) is None
            done, last, count = time.monotonic(), None, 0
            while library.wait(events, QUIET_MS):
                last, count = time.monotonic(), count + 1
            after = round((last - done) * 1000, 3) if last else None
            seen[what] = {"events": count, "ms for the calls": round((done - began) * 1000, 3),
                          "ms from the calls to the last event": after, "listed when the calls return": listed}
            facts[f"events when {what}"] = count
            facts[f"NVML's list is right when {what} and the calls return"] = listed
        library.code("nvmlEventSetFree", events)
    return Answer(f"{seen}", facts, seen)


@question("change-session", "Does a session that was open before see a slice that another process makes, and what do "
          "handles of a destroyed slice answer?",
          "another process makes and destroys a slice while this one looks with a session from before", changes=True)
def change_session(ask):
    with ask.library() as library:
        slices = Slices(library, ask.gpu)
        ask.child("make")
        before = list(library.mig_devices(slices.gpu)[0].values())
        device = before[0] if before else None
        uuid = library.text("nvmlDeviceGetUUID", device) if device else None
        ask.child("clear")
        after = library.mig_devices(slices.gpu)[0]
        codes = {}
        if device:
            for call in ("nvmlDeviceGetUUID", "nvmlDeviceGetGpuInstanceId"):
                try:
                    if call == "nvmlDeviceGetUUID":
                        library.text(call, device)
                    else:
                        library.get(call, c_uint, device)
                    codes[call] = "SUCCESS"
                except Refused as refused:
                    codes[call] = refused.code
    facts = {"an open session sees a slice that comes": len(before) == 1,
             "an open session sees that a slice goes": not after}
    facts.update({f"handle of a destroyed slice: {call}": code for call, code in codes.items()})
    return Answer(f"came: {uuid}; left afterwards: {len(after)}; old handle: {codes}", facts)


@question("change-identity", "Does a slice that is made again have its UUID again?",
          "a slice is made, destroyed, made again at its place; then another profile of the same size there",
          changes=True)
def change_identity(ask):
    with changes(ask) as library:
        slices = Slices(library, ask.gpu)
        uuids, facts = {}, {}
        profiles = library.profiles(slices.gpu)
        # Rather one with another number of compute slices, such as 2g.20gb and 1g.20gb.
        pairs = [(a, b) for a in profiles for b in profiles if a.slices > b.slices and a.memory_mib == b.memory_mib]
        first = pairs[-1][0] if pairs else slices.smallest()
        same_size = [pairs[-1][1]] if pairs else []
        made = slices.make(first)
        info = made[2]
        uuids["first"] = slices.uuid_of(info, made[3])
        slices.destroy(made)
        for what, profile in [("the same profile", first)] + [("another profile of its size", other) for other in same_size]:
            try:
                made = slices.make(profile, info.start, info.size)
            except Refused as refused:
                uuids[what] = str(refused)
                continue
            uuids[what] = slices.uuid_of(made[2], made[3])
            facts[f"{what} at the place has the same UUID"] = uuids[what] == uuids["first"]
            slices.destroy(made)
    return Answer(f"{uuids}", facts, uuids)


@question("change-codes", "In which order are slices placed, and with which codes are impossible ones refused?",
          "the smallest profile as often as it fits, one more, a taken place, and a destroy in the wrong order",
          changes=True)
def change_codes(ask):
    facts, placed = {}, []
    with changes(ask) as library:
        slices = Slices(library, ask.gpu)
        profile = slices.smallest()
        for _ in range(profile.count):
            instance, info = slices.instance(profile)
            placed.append([info.start, info.size, info.id])
        facts["one more than fits"] = code_of(lambda: slices.instance(profile))
        compute, _ = slices.compute(instance)
        facts["GPU instance with a compute instance is destroyed"] = library.code("nvmlGpuInstanceDestroy", instance)
        facts["a second compute instance where one fits"] = code_of(lambda: slices.compute(instance))
        library.do("nvmlComputeInstanceDestroy", compute)
        library.do("nvmlGpuInstanceDestroy", instance)
        facts["GPU instance is destroyed twice"] = library.code("nvmlGpuInstanceDestroy", instance)
        facts["a place that is taken"] = code_of(lambda: slices.instance(profile, placed[0][0], placed[0][1]))
    starts = [start for start, _, _ in placed]
    facts["the smallest profile fits as often as the driver says"] = len(set(starts)) == profile.count
    facts["places are filled from the lowest"] = starts == sorted(starts)
    text = "; ".join(f"{what}: {code}" for what, code in facts.items())
    return Answer(f"start, size, ID: {placed}; {text}", facts, {"placed": placed})


@question("change-files", "When do capability files and nodes come and go, and do a slice's files tell it from the "
          "next one?", "stat of the access file and the nodes while a slice is made, destroyed, and made again",
          changes=True)
def change_files(ask):
    seen = {}
    with changes(ask) as library:
        slices = Slices(library, ask.gpu)
        profile = slices.smallest()
        made = slices.make(profile)
        info, ci = made[2], made[3]
        file = ask.place.capability(slices.minor, info.id, ci)
        minors = ask.place.minors()
        names = [f"gpu{slices.minor}/gi{info.id}/access", f"gpu{slices.minor}/gi{info.id}/ci{ci}/access"]
        nodes = [ask.place.node(minors[name]) for name in names if name in minors]
        there = lambda: all(node.exists() for node in nodes)
        seen["file when it is made"], seen["nodes when it is made"] = file.exists(), there()
        slices.uuid_of(info, ci)
        seen["nodes when it was listed"] = there()
        first = place.stamp(file) if file.exists() else None
        held = os.open(file, os.O_PATH) if first else None
        codes = slices.destroy(made)
        seen["file when it is destroyed"], seen["nodes when it is destroyed"] = file.exists(), there()
        again = slices.make(profile, info.start, info.size)
        second = place.stamp(file) if file.exists() else None
        seen["the next one's file has another inode or time"] = first != second
        if held is not None:
            os.close(held)
        slices.destroy(again)
    facts = {**seen, "an open descriptor of O_PATH stands in the way of the destroy": codes != ["SUCCESS", "SUCCESS"]}
    return Answer("; ".join(f"{what}: {value}" for what, value in facts.items()), facts, {"stamps": [first, second]})


@question("change-rounds", "Does a client that listens and looks ever stand in the way of a destroy?",
          "a slice made, listed, listened to and destroyed, many times in one session (--rounds)",
          changes=True)
def change_rounds(ask):
    codes = {}
    with changes(ask) as library:
        slices = Slices(library, ask.gpu)
        events, _ = library.events(XID, [slices.gpu])
        profile = slices.smallest()
        for _ in range(ask.rounds):
            made = slices.make(profile)
            for device in library.mig_devices(slices.gpu)[0].values():
                library.slice(device)
            library.wait(events, 1)
            for code in slices.destroy(made):
                codes[code] = codes.get(code, 0) + 1
            # What was refused is tried once more, so that the next round has room.
            slices.clear()
        library.code("nvmlEventSetFree", events)
    return Answer(f"{ask.rounds} rounds: {codes}", {"a destroy is refused": set(codes) != {"SUCCESS"}}, codes)


def refusal(library, uuid):
    """Why instances may not be made on this GPU; `None` where they may."""
    for gpu in usable(library).values():
        if library.text("nvmlDeviceGetUUID", gpu) != uuid:
            continue
        if not library.mig_mode(gpu):
            return "it is not in MIG mode, and this program does not change that"
        try:
            if library.instances(gpu):
                return "it has GPU instances: somebody uses them, or may at any time"
            processes = library.list("nvmlDeviceGetComputeRunningProcesses_v3", Process, gpu, count_first=True)
        except Refused as refused:
            return f"it cannot be made sure that nobody uses it: {refused}"
        return f"{len(processes)} processes use it" if processes else None
    return "there is no such GPU that answers"


never("fault-in-slice", "What does a listener without rights hear of a fault in a slice, and with mig/monitor alone?",
      "it takes a program that faults: run one in a slice while the plugin runs with --log-level debug, once with "
      "CAP_SYS_ADMIN, once with the monitor node alone, once with neither")
never("gpu-wide-xid", "With which instance IDs does an error of the whole GPU come?",
      "it takes a broken GPU: look for the plugin's log lines when Xid 79, 94, 95 or 120 comes to a GPU with slices")
never("mig-mode", "With which code is MIG mode refused while instances or clients are there?",
      "it changes MIG mode: nvidia-smi -mig 0 while slices are there, and while the plugin runs")
never("reset", "Does the plugin stand in the way of a reset, and do handles and instances outlive one?",
      "it resets a GPU: nvidia-smi -r -i N while the plugin runs, and after SIGUSR1")
never("recovery-after-xid", "What does a GPU need after errors in one slice?",
      "it takes errors: read field 230 after Xids 31, 43, 94 and 95")
never("drop-caches", "Do capability files keep their times when the kernel drops its caches?",
      "it slows the whole node: stat the access files before and after echo 2 > /proc/sys/vm/drop_caches")
