"""Measuring: synthetic stores, route traces, and what the machine can do."""
