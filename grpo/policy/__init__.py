"""The model that trains: its log-probs of packed rows, attention, adapters, sharded weights, and the model families."""
