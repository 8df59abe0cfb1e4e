"""The commands that draw: the loss curves of a run, and the report on a model."""
