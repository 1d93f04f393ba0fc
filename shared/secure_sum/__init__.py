"""Secure aggregation without Flower: the sum of many vectors, and nothing else about any of them."""
