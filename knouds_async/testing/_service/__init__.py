"""The emulated service's parts. RULE: no await, no I/O, no clock; `now` and the dice are arguments."""
