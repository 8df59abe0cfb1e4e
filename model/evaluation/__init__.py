"""Measuring a trained network: the loss under named protocols, advice on a run, loss curves, correlations of units.

Here belongs what reads a network or the numbers of a run. What changes weights or writes a run's files does not.
"""
