"""Robot actions: simulated arms, demonstrations, and the action spaces that a policy answers in (docs/actions.md)."""
