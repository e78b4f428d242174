"""What leaves the machine: cards, the Hub, and what may not be published."""
