"""The launcher of `python -m service`: it starts Redis, the trainer and the server on this machine and stops them.

Processes, locks and signals belong here. What the processes do does not; containers start them without this folder.
"""
