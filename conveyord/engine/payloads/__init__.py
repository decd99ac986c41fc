"""Formats of what messages carry: one value becomes one row or several, or is bad by itself."""
