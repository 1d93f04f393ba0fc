"""Populations, runs, their results and the report."""
