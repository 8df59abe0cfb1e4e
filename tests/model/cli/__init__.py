"""Tests of model/cli/."""
