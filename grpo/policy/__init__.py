"""The model that trains: its log-probs of packed rows, attention, adapters, sharded weights, and the model families.

Its inputs are here too: frames are sent to the device ahead of a pass, and a frozen vision tower's output is kept.
"""
