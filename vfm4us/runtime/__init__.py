"""What every run needs: its folder, its device and processes, its loop, its files, its random numbers."""
