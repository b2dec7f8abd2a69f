"""Runs as a web page: what their folders hold, in a folder that a browser opens. Start with `build.py`."""
