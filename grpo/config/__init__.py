"""Every setting: name, type, default, limits and meaning; and how files and overrides become one `Config`."""
