"""What the notebooks show and `make run` executes; only here are matplotlib and ipywidgets."""
