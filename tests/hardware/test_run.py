"""`run` on fake nodes: it answers, changes nothing that it must not, and its table agrees with the fake driver.

Started by `check`, which sets FAKE_NVML to the program that makes nodes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAKE = os.environ["FAKE_NVML"]
H100 = "h100-80gb-sxm5"
CHANGING = re.compile(
    r"(?<!Event)Set|(?<!EventSet)Create|Destroy|Reset|Clear|Modify|Enable|Disable|Freeze|Remove|Drain|Write|Power")


def node(folder, description):
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "wanted.yaml"
    # JSON is YAML.
    text.write_text(json.dumps(description))
    subprocess.run([FAKE, "create", folder / "node", text], check=True, capture_output=True)
    return folder / "node"


def run(root, *options):
    command = [sys.executable, HERE / "run", "--driver-root", root, "--json", root / "report.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    report = json.loads((root / "report.json").read_text())
    return {entry["id"]: entry for entry in report["questions"]}, done


def counters(root):
    lines = subprocess.run([FAKE, "counters", root], check=True, capture_output=True, text=True).stdout.splitlines()
    return {word for line in lines for word in line.split() if word.startswith("nvml")}


def gpus(root):
    text = subprocess.run([FAKE, "list", root], check=True, capture_output=True, text=True).stdout
    return re.findall(r"^GPU .*?UUID: (GPU-[0-9a-f-]+)", text, re.M)


class Run(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def facts(self, entries):
        return {(id, line["fact"]): line for id, entry in entries.items() for line in entry["facts"]}

    def test_everything_is_answered_or_says_why_and_agrees_with_the_table(self):
        nodes = {
            "mixed": {"gpus": [{"model": H100, "mig": True, "layout": ["3g.40gb", "1g.10gb"]},
                               {"model": H100, "mig": True, "layout": [{"profile": "1g.10gb", "count": 7}]},
                               {"model": H100}],
                      "topology": {"preset": "hgx"}},
            **{" ".join(rights) or "none": {"rights": rights, "gpus": [
                {"model": H100, "mig": True, "layout": ["1g.10gb"]}, {"model": H100}]}
               for rights in ([], ["admin"], ["config"], ["monitor"])},
            "old": {"gpus": [{"model": "v100-sxm2-32gb", "count": 2}]},
            "lost": {"gpus": [{"model": H100}, {"model": H100, "lost": "isLost"}]},
        }
        found = {}
        for name, description in nodes.items():
            only = ("--only", "rights") if "rights" in description else ()
            entries, done = run(node(self.folder / name, description), *only)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            for id, entry in entries.items():
                self.assertTrue(("answer" in entry) != ("notAsked" in entry), (name, id, entry))
            self.assertIn("facts differ", done.stdout)
            found.update(self.facts(entries))
        entries, done = self.changing()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        found.update(self.facts(entries))
        for where, line in found.items():
            self.assertFalse(line["differs"], (where, line))
        table = {(id, fact) for id, facts in json.loads((HERE / "fake.json").read_text()).items() for fact in facts}
        plugin = {where for where in table if where[0] == "plugin"}
        self.assertEqual(table - plugin, {where for where, line in found.items() if line["fake"] is not None})
        self.assertEqual({where for where, line in found.items() if line["fake"] is None}, set())

    def changing(self):
        # The first GPU is empty, and the second one's slices are not this program's.
        root = node(self.folder / "empty", {"gpus": [{"model": H100, "mig": True},
                                                     {"model": H100, "mig": True, "layout": ["1g.10gb"]}]})
        before = subprocess.run([FAKE, "list", root], check=True, capture_output=True, text=True).stdout
        entries, done = run(root, "--allow-mig-changes", "--gpu", gpus(root)[0], "--rounds", "5")
        after = subprocess.run([FAKE, "list", root], check=True, capture_output=True, text=True).stdout
        self.assertEqual(before, after)
        for id, entry in entries.items():
            if id.startswith("change-"):
                self.assertIn("answer", entry, id)
        # Without this the other test could not fail.
        self.assertTrue(any(CHANGING.search(call) for call in counters(root)), counters(root))
        return entries, done

    def test_nothing_is_changed_unless_that_is_allowed(self):
        root = node(self.folder, {"gpus": [{"model": H100, "mig": True, "layout": ["3g.40gb"]}, {"model": H100}]})
        description = (root / "node.yaml").read_bytes()
        run(root)
        called = counters(root)
        self.assertIn("nvmlDeviceGetUUID", called)
        self.assertEqual([call for call in called if CHANGING.search(call)], [])
        self.assertEqual((root / "node.yaml").read_bytes(), description)

    def test_a_gpu_that_somebody_may_use_is_refused(self):
        gpu = {"model": H100, "mig": True}
        root = node(self.folder, {"gpus": [{**gpu, "layout": ["1g.10gb"]}, {**gpu, "processes": [{"pid": 7}]},
                                           {"model": H100}]})
        description = (root / "node.yaml").read_bytes()
        reasons = ["it has GPU instances", "1 processes use it", "it is not in MIG mode"]
        for uuid, reason in zip([*gpus(root), "GPU-x"], [*reasons, "there is no such GPU"]):
            entries, done = run(root, "--allow-mig-changes", "--gpu", uuid, "--only", "change-codes")
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertIn(reason, entries["change-codes"]["notAsked"])
        self.assertEqual((root / "node.yaml").read_bytes(), description)

    def test_what_differs_from_the_fake_is_told_line_by_line(self):
        root = node(self.folder, {"gpus": [{"model": H100}], "migEventNeedsMig": True})
        entries, done = run(root, "--only", "event-masks")
        line = next(line for line in entries["event-masks"]["facts"] if line["differs"])
        self.assertEqual((line["here"], line["fake"]), ("NOT_SUPPORTED", "SUCCESS"))
        self.assertIn(f"DIFFERS: {line['fact']}: NOT_SUPPORTED here", done.stdout)

    def test_a_call_that_hangs_costs_its_question(self):
        root = node(self.folder, {"gpus": [{"model": H100}], "faults": [
            {"call": "nvmlDeviceGetSupportedEventTypes", "delayMs": 600_000}]})
        entries, done = run(root, "--timeout", "5", "--only", "event-masks", "--only", "codes")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no answer within 5 s", entries["event-masks"]["error"])
        self.assertIn("answer", entries["codes"])

    def test_without_a_driver_it_says_so(self):
        command = [sys.executable, HERE / "run", "--driver-root", self.folder, "--library", self.folder / "none.so"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("NVML cannot be used", done.stderr)

    @unittest.skipUnless(os.environ.get("PLUGIN"), "no plugin binary")
    def test_the_plugin_sees_what_the_report_says(self):
        root = node(self.folder, {"gpus": [{"model": H100, "mig": True, "layout": ["3g.40gb", "1g.10gb"]}]})
        entries, done = run(root, "--plugin", os.environ["PLUGIN"], "--only", "plugin")
        self.assertEqual([line["differs"] for line in entries["plugin"]["facts"]], [False, False], done.stdout)
        self.assertTrue(all(line["fake"] is not None for line in entries["plugin"]["facts"]))


if __name__ == "__main__":
    unittest.main()
