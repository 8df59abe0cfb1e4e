"""Continuous batching: many sequences on one stepper, advanced by one thread.

Sequences, scheduling, stop strings and streams belong here. HTTP, sessions and stores do not: no code here does I/O.
"""
