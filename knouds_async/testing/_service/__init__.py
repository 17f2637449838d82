"""The emulated service's parts. RULE: no await, no I/O, no clock; `now` and random generators are arguments."""
