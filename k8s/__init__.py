"""Manifests, and what keeps those that are generated in step with the code."""
