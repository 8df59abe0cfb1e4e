"""Everything that installs and runs Longhand: the Python environment, containers, clusters, monitoring.

The product itself belongs to model/ and service/.
"""
