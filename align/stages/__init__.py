"""The stages of a loop, each beside the node that a recipe writes for it."""
