"""Waiting with a bound."""

import time


class Failed(Exception):
    """What a case expected and did not see."""


def until(what, condition, seconds=90):
    """Asks again until `condition` answers something true, and returns that."""
    end = time.monotonic() + seconds
    answer = None
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.1)
    raise Failed(f"{seconds} s were not enough for this: {what}")


def until_equal(what, expected, look, seconds=90):
    """Asks again until `look` answers what is expected; says what it answered last if it does not."""
    end = time.monotonic() + seconds
    seen = None
    while time.monotonic() < end:
        seen = look()
        if seen == expected:
            return
        time.sleep(0.1)
    raise Failed(f"{what}: after {seconds} s it is {seen}, and should be {expected}")


def expect(truth, otherwise):
    if not truth:
        raise Failed(otherwise)


def expect_equal(what, expected, seen):
    if seen != expected:
        raise Failed(f"{what}: it is {seen}, and should be {expected}")
