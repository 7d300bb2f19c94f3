"""Held-out proof: how far the quantized network is from its original."""
