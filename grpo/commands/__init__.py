"""What people type beside a training run: a module or a folder for each command that `__main__.py` lists."""
