"""Here so that pytest puts this folder on the path, and tests in the folders below find small_pipeline."""
