"""Checkpoint files: their format, the folder that holds them with its promotions, and their self-test.

Not here: what happens when a promotion is noticed (service/models), and the resume point of a run (training).
"""
