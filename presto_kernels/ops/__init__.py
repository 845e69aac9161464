"""The op families, one folder each."""
