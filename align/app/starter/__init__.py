"""`align init`: a commented starter recipe for data, model and machine."""
