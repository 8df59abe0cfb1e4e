"""Whole items of a model of a list: which they must be (plan), and their generation in the engine (running)."""
