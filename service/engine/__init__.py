"""Continuous batching: many sequences on one stepper, advanced by one thread.

Sequences, their scheduling, stop strings and streams belong here. HTTP, sessions and stores do not: this code does no I/O.
"""
