"""Timings and sizes, compared within one run."""
