"""Experiments on speed: a ledger, verdicts that hold, a search over knobs, and rounds of
changes to the code that an agent proposes."""
