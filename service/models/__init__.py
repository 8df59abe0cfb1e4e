"""The loaded models: which checkpoint answers requests, and how it is replaced and freed.

How a text is generated (engine, generation) and how checkpoints are stored (model.checkpoints) do not belong here.
"""
