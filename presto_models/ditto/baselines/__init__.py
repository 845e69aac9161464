"""What DITTO is compared with, on the same models and controls; :mod:`presto_models.ditto` exports it."""
