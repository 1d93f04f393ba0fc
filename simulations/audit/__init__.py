"""Measures privacy: lower bounds on epsilon from the outside, beside the upper bound that accounting claims."""
