"""Before a download: what a model needs and how fast it will be. Afterwards: route traces
of real runs, replayed over other caches."""
