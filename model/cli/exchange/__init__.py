"""The commands that take a model elsewhere, and back."""
