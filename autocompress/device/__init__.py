"""Everything that meets the device: timing, profiles, kits and imports."""
