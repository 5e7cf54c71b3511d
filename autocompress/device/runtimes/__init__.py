"""What runs exported files; one file a runtime."""
