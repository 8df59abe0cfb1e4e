"""The Python environment: `make` runs `python -m deploy.environment` with the system's Python to create it.

Only the standard library may be imported here, because nothing is installed yet. Container files do not belong here.
"""
