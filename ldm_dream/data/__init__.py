"""Pictures in and out, resizing, degradation, training pairs."""
