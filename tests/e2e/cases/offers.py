"""What the node shows."""

from fake_node import MIXED
from wait import expect_equal


def mixed(setting):
    setting.begin_mixed()
    expect_equal("capacity", setting.devices("allocatable"), setting.devices("capacity"))


def single(setting):
    # The profile with the most slices; whole GPUs are withheld beside MIG ones.
    check(setting, "single", 9)


def none(setting):
    check(setting, "none", 8)


def check(setting, strategy, gpus):
    setting.begin(MIXED, {"nvidia.com/gpu": gpus}, migStrategy=strategy)
    expect_equal("capacity of nvidia.com/gpu", gpus, setting.devices("capacity")["nvidia.com/gpu"])


CASES = {
    "strategy single: the commonest profile as nvidia.com/gpu": single,
    "strategy none: whole GPUs": none,
    "strategy mixed: each profile under its own name": mixed,
}
