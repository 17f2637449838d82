"""The rules of the library, pure: no await, no I/O, no clock, no dice; `now` and `roll` are arguments."""
