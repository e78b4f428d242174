"""A client of model servers: endpoint, retries, limits, and a store of every answer."""
