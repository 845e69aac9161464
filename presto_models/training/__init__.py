"""`python -m presto_models train`: one loop on Lightning Fabric, a task for each model."""
