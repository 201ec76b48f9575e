"""Flows: the order of the steps."""
