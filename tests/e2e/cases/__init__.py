"""The cases, in the order in which they run: each a function that takes a `Setting`, raises `Failed`, and may return
what it saw, for the summary."""

from . import changes, health, lifecycle, offers, pods, strategies

CASES = offers.CASES | pods.CASES | health.CASES | changes.CASES | strategies.CASES | lifecycle.CASES
