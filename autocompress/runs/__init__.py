"""What is written down, and who does the work."""
