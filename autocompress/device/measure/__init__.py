"""How long a network takes, and whether the machine was quiet."""
