"""``python -m presto_models control ...``: each command its options and a ``run(options)``."""
