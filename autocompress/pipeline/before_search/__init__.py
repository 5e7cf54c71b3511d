"""What comes before a search: a check that a network goes through, and a profile of this machine."""
