"""What the demo is made of: generated clips with questions, and the small policy that is shipped."""
