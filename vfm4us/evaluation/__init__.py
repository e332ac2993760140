"""What is measured: figures of each task, of vectors, and how sure they are."""
