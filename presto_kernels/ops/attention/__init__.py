"""Attention with key lengths and windows."""
