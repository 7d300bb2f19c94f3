"""Packed weights as ordinary modules."""
