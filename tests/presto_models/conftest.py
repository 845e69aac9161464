"""Puts this folder on the path of the tests below it too, which share its small models."""
