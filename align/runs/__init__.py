"""A run's folder, its manifests and its ledger."""
