"""Images in: a manifest of what a source holds, pixels packed once, splits that never divide a patient."""
