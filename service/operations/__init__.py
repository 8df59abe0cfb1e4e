"""How the service is operated: draining, health checks, metrics, the terminal and the launcher.

Not here: what a request computes (generation, inspection) and the configuration of deployments (deploy/).
"""
