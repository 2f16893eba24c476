"""The command line: one thin file per command.

The answer goes to stdout, everything else to stderr.
"""
