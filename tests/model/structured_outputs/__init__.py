"""Tests of model/structured_outputs/."""
