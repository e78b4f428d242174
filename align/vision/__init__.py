"""Pictures: how rows name them, what tokens stand for them, what models read of them."""
