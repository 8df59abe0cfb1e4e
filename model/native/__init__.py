"""The C code for CPUs: its source (src/), its build and its loader. The stepper and training call it.

What belongs here knows arrays and pointers only. What the arrays mean is decided by the callers, in torch and numpy.
"""
