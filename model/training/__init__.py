"""Training a network: the loop, the step, the schedule, and the files that a run writes.

Here belongs what changes weights or writes a run's files. What only measures a network belongs to evaluation/.
"""
