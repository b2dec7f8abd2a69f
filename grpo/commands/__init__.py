"""What people type beside a training run: each `egogrpo` command is a module or a folder here."""
