"""Codecs, which turn continuous sequences (motion, sensors, actions) into codes with tokens of their own, and back."""
