"""What a model can still do: suites, intervals, sweeps over lossy knobs, and their reports."""
